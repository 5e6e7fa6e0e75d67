"""Entry point of the command `python -m routilux`."""

from routilux.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
