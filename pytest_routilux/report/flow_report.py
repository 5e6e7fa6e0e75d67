"""The fixture `flow_report`, which reports on one test.

Invariants:
- A part is rendered when it is added: the report shows the state of that moment. A renderable that
  raises fails the test at the line that adds it.
- Width and colours are those of the terminal that prints; with xdist, the controller's.
- Each row of a verification comes from a comparison that was made. A ❌ fails the test.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Self

from pytest_routilux.report.run_facts import facts_of
from pytest_routilux.settings import report_look
from pytest_routilux.text import count

if TYPE_CHECKING:
    import os
    from types import TracebackType

    import pytest
    from rich.console import OverflowMethod, RenderableType

    from routilux.core.state import JobState
    from routilux.monitor import ExecutionMonitor
    from routilux.saved_state import SavedState


class FlowReport:
    """Collects the report of one test, part by part.

    A source is a job or a monitor. The report is shown with -v and if the test fails;
    `--routilux-report=always` shows every report, `never` none.

    A test with it::

        def test_a_payment(flow_factory, flow_runtime, flow_report):
            def charge(order):
                return {"paid": order}

            job = flow_factory(chain=[charge]).execute("charge", {"order": "A7"})

            flow_report.timeline(job, title="payment")
            flow_report.status(job)
    """

    def __init__(self, node: pytest.Item, config: pytest.Config) -> None:
        self._parts = facts_of(node).parts
        self._width, self._colour = report_look(config)

    def add(self, *renderables: RenderableType, title: str | None = None) -> None:
        """Add objects that rich can render."""
        from rich.console import Console
        from rich.padding import Padding
        from rich.rule import Rule
        from rich.text import Text

        # The environment is ignored: pytest has decided about width and colours.
        console = Console(
            file=io.StringIO(),
            width=self._width,
            force_terminal=self._colour,
            color_system="standard" if self._colour else None,
            no_color=not self._colour,
            legacy_windows=False,
            emoji=False,
            markup=False,  # text such as [bold] is shown unchanged
            highlight=False,
            _environ={},
        )
        with console.capture() as capture:
            if title is not None:
                console.print(Rule(Text(title, style="bold"), align="left", style="cyan"))
            for renderable in renderables:
                console.print(Padding(renderable, (0, 0, 0, 2)))
        text = "\n".join(line.rstrip() for line in capture.get().splitlines())
        if text:
            self._parts.append(text)

    def timeline(self, source: JobState | ExecutionMonitor, *, title: str | None = None) -> None:
        """Add one line for each event of a job."""
        from pytest_routilux.report.tables import timeline

        self.add(timeline(source), title=title)

    def status(self, job: JobState, *, max_retries: int | None = None) -> None:
        """Add one line with a job's status, retries and record count."""
        from pytest_routilux.report.tables import status

        self.add(status(job, max_retries))

    def summary(self, source: JobState | ExecutionMonitor, *, title: str | None = None) -> None:
        """Add counts of events and a table of the routines."""
        from pytest_routilux.report.tables import summary

        self.add(summary(source), title=title)

    def retries(self, source: JobState | ExecutionMonitor, *, title: str | None = None) -> None:
        """Add a chart of all attempts and a table of all retries."""
        from pytest_routilux.report.tables import retries

        self.add(retries(source, self._width - 2), title=title)

    def saved_state(
        self,
        saved: SavedState,
        path: str | os.PathLike[str] | None = None,
        *,
        title: str | None = None,
    ) -> None:
        """Add a table about a saved state and the file `path`."""
        from pytest_routilux.report.tables import saved_state

        self.add(saved_state(saved, path), title=title)

    def verification(self, title: str, *, brief: bool = False) -> Verification:
        """Return a context manager that collects and asserts checks.

        `brief` shows one line instead of the table if every check passed.
        """
        return Verification(self, title, brief)


class Verification:
    """Checks that are asserted together when the `with` block ends.

    The report shows a table of them. A block without a check fails.

    A test with it::

        def test_a_payment(flow_factory, flow_runtime, flow_report):
            def charge(order):
                return {"paid": order}

            job = flow_factory(chain=[charge]).execute("charge", {"order": "A7"})

            with flow_report.verification("payment") as verify:
                verify("status", "completed", job.status.value)
                verify.that("it has an output", job.outputs, job.outputs[0].data)
    """

    def __init__(self, report: FlowReport, title: str, brief: bool) -> None:
        self._report = report
        self._title = title
        self._brief = brief
        self._rows: list[tuple[bool, str, str, str]] = []

    def __call__(self, check: str, expected: object, actual: object) -> None:
        """Check that `actual` equals `expected`."""
        good, texts = bool(expected == actual), (_shown(expected), _shown(actual))
        if not good and (not texts[0] or texts[0] == texts[1]):  # such as 4 and "4"
            texts = repr(expected), repr(actual)
        self._rows.append((good, check, *texts))

    def that(self, check: str, condition: object, detail: object = "") -> None:
        """Check a condition, and show `detail` as the actual value."""
        self._rows.append((bool(condition), check, "", _shown(detail)))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        __tracebackhide__ = True
        failed = [row for row in self._rows if not row[0]]
        if self._brief and not failed:
            self._report.add(f"✅ {self._title}: {count(len(self._rows), 'check')}")
        elif self._rows:
            self._add_table()
        lines = [
            f"  ❌ {check}: expected {expected}, actual {actual}"
            if expected
            else f"  ❌ {check}{f': {actual}' if actual else ''}"
            for _, check, expected, actual in failed
        ]
        if error is not None:
            if lines:
                error.add_note(
                    "\n".join([f"{self._title}: these checks failed before this error", *lines])
                )
            return
        if not self._rows:
            raise AssertionError(f"{self._title}: no check was made; call verify() inside `with`")
        if failed:
            head = f"{len(failed)} of {len(self._rows)} checks failed"
            raise AssertionError("\n".join([f"{self._title}: {head}", *lines]))

    def _add_table(self) -> None:
        from rich.text import Text

        from pytest_routilux.report.tables import plain_table

        table = plain_table("", "check", "expected", "actual")
        for good, check, expected, actual in self._rows:
            # A check that passed takes one line; one that failed is shown in full.
            mark, style = ("✅", "") if good else ("❌", "bold red")
            overflow: OverflowMethod = "ellipsis" if good else "fold"
            texts = (" ".join(cell.split()) for cell in (check, expected, actual))
            cells = [Text(text, style, no_wrap=good, overflow=overflow) for text in texts]
            table.add_row(mark, *cells)
        self._report.add(table, title=self._title)


def _shown(value: object) -> str:
    return value if isinstance(value, str) else repr(value)
