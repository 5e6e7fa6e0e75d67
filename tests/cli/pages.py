"""The golden output of the command line on the store of the tests, in part from the README."""

from __future__ import annotations

import re

from tests.cli.payments import ROOT

_README = (ROOT / "README.md").read_text("utf-8")
(_block,) = re.findall(r"^```console\n(.*?)^```$", _README, re.M | re.S)
RUNS: dict[str, str] = dict(
    re.findall(r"^\$ python -m routilux (.*)\n((?:[^$].*\n|\n)+)", _block, re.M)
)
JOBS, FAILED = RUNS["jobs jobs.db"], RUNS["show jobs.db failed"].rstrip("\n") + "\n"

DONE = """\
job done of flow payment: completed, 1 task dropped
2 retries · 7 commits · 2.6600 s from the first commit to the last
started 2026-01-01 12:00:00 UTC, 60 min ago; last commit 59 min ago

🚀 [ 0.000s] charge.trigger
               order  A1
💥 [ 0.120s] charge attempt 1 → retry 1 in 0.5000 s: ConnectionError: the gateway does not answer
               at shop.py:2 · ran 0.1200 s
💥 [ 0.740s] charge attempt 2 → retry 2 in 1.0000 s: ConnectionError: the gateway does not answer
               at shop.py:2 · waited 0.5000 s · ran 0.1200 s
📌 [ 1.860s] charge attempt 3: once('charge') recorded: A1 is paid
✅ [ 1.860s] charge attempt 3: done · waited 1.0000 s · ran 0.1200 s · state: order · shared: paid
📤 [ 1.860s] charge.output → ship, mail
               receipt  A1 is paid
               items    3 items: 1 pen, 2 pen, …
✅ [ 2.660s] ship attempt 1: done · ran 0.8000 s
📤 [ 2.660s] ship.shipped → outputs
💥 [ 2.660s] mail attempt 1 → dropped as error_continued: ValueError: no address
               at shop.py:4 · ran 0.0000 s
🏁 [ 2.660s] job completed

outputs
  ship.shipped: parcel=parcel of what A1 is paid

dropped
  mail.trigger error_continued at attempt 1: ValueError: no address · task 0.1
"""
