"""Entry point of `python -m routilux`, the command line; see `routilux.cli`."""

from routilux.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
