"""The golden output of the command line on the store of the tests."""

from __future__ import annotations

JOBS = """\
job     flow     status        age  commits  retries  next due, UTC       held by
queued  payment  pending      10 s        1        0  10 s ago, 12:59:50  nobody
paused  payment  paused       20 s        3        1  –                   –
waits   payment  running      90 s        2        1  in 11 s, 13:00:10   web-1:4711, no lease
failed  payment  failed     10 min        3        1  –                   –
done    payment  completed  60 min        7        2  –                   –

5 jobs: 1 pending, 1 running, 1 paused, 1 completed, 1 failed
"""


DONE = """\
job done of flow payment
started 2026-01-01 12:00:00 UTC, 60 min ago; last commit 59 min ago

🚀 [ 0.000s] charge.trigger
               order  A1
💥 [ 0.120s] charge attempt 1 → retry 1 in 0.5000 s: ConnectionError: the gateway does not answer
               at shop.py:2 · ran 0.1200 s
💥 [ 0.740s] charge attempt 2 → retry 2 in 1.0000 s: ConnectionError: the gateway does not answer
               at shop.py:2 · waited 0.5000 s · ran 0.1200 s
📌 [ 1.860s] charge attempt 3: once('charge') recorded: A1 is paid
✅ [ 1.860s] charge attempt 3: done · waited 1.0000 s · ran 0.1200 s · state: order · shared: paid
📤 [ 1.860s] charge.output
               receipt  A1 is paid
               items    3 items: 1 pen, 2 pen, …
🔀 [ 1.860s] charge → ship: 3 items
🔀 [ 1.860s] charge → mail: 3 items
✅ [ 2.660s] ship attempt 1: done · ran 0.8000 s
📤 [ 2.660s] ship.shipped
               parcel  parcel of what A1 is paid
💥 [ 2.660s] mail attempt 1 → dropped as error_continued: ValueError: no address
               at shop.py:4 · ran 0.0000 s
🏁 [ 2.660s] job completed

outputs
  ship.shipped: parcel=parcel of what A1 is paid

dropped
  mail.input error_continued at attempt 1: ValueError: no address · task 0.1, receipt=A1 is paid,\
 items=3 items: 1 pen, 2 pen, …

status completed · 2 retries · 7 commits · 2.6600 s from the first commit to the last
"""


FAILED = """\
job failed of flow payment
started 2026-01-01 12:50:00 UTC, 10 min ago; last commit 9 min ago

🚀 [ 0.000s] charge.trigger
               order  A2
💥 [ 0.120s] charge attempt 1 → retry 1 in 0.5000 s: ConnectionError: the gateway does not answer
               at shop.py:2 · ran 0.1200 s
💥 [ 0.740s] charge attempt 2: ConnectionError: the gateway does not answer
               at shop.py:2 · waited 0.5000 s · ran 0.1200 s
🏁 [ 0.740s] job failed

pending
  charge.trigger failed at attempt 2: ConnectionError: the gateway does not answer · task 0

status failed · 1 retry · 3 commits · 0.7400 s from the first commit to the last
"""


WAITS = """\
job waits of flow payment
started 2026-01-01 12:58:30 UTC, 90 s ago; last commit 89 s ago
held by web-1:4711:9f86d081884c7d65 without a lease

🚀 [ 0.000s] charge.trigger
               order  A3
💥 [ 0.120s] charge attempt 1 → retry 1 in 100.0000 s: ConnectionError: the gateway does not answer
               at shop.py:2 · ran 0.1200 s

pending
  charge.trigger attempt 2, due in 11 s (13:00:10 UTC): order=A3 · task 0

status running · 1 retry · 2 commits · 0.1200 s from the first commit to the last
"""
