"""The golden output of the command line on the store of the tests, at 100 columns."""

from __future__ import annotations

JOBS = """\
job     flow     status        age  next due  held by               at step, or why
queued  payment  pending      10 s  10 s ago  nobody                charge
paused  payment  paused       20 s  –         –                     charge attempt 2
waits   payment  running      90 s  in 11 s   web-1:4711, no lease  charge attempt 2
failed  payment  failed     10 min  –         –                     charge attempt 2: ConnectionErr…
done    payment  completed  60 min  –         –                     –

5 jobs: 1 pending, 1 running, 1 paused, 1 completed, 1 failed
left out to fit 100 columns: commits, retries
"""

FAILED = """\
job failed of flow payment: failed at charge attempt 2
ConnectionError: the gateway does not answer (shop.py:2)
1 retry · 3 commits · 0.7400 s from the first commit to the last
started 2026-01-01 12:50:00 UTC, 10 min ago; last commit 9 min ago

🚀 [ 0.000s] charge.trigger
               order  A2
💥 [ 0.120s] charge attempt 1 → retry 1 in 0.5000 s: ConnectionError: the gateway does not answer
               at shop.py:2 · ran 0.1200 s
💥 [ 0.740s] charge attempt 2: ConnectionError: the gateway does not answer
               at shop.py:2 · waited 0.5000 s · ran 0.1200 s
🏁 [ 0.740s] job failed

failed
  charge.trigger at attempt 2: ConnectionError: the gateway does not answer · task 0: order=A2
"""

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
