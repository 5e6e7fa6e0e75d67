"""The functions that read the time are replaced where they are kept, and all are put back."""

from __future__ import annotations

from itertools import product

import pytest

from tests.plugin.inner import run_first
from tests.soak import sampled

SHOP = """
    import time
    import datetime as dt
    from dataclasses import dataclass, field
    from datetime import date, datetime
    from functools import partial
    from time import monotonic, sleep, time as seconds

    REAL = {"time.sleep": time.sleep, "time.time": time.time}
    SETTINGS = {"timers": [None]}

    class Shelf:
        clock = None
        timer = time.monotonic
"""
LATER = """
    import time
    from datetime import date, datetime
    from types import BuiltinFunctionType

    import pytest
    import shop

    NEW_YEAR = datetime(2026, 1, 1)

    def is_real(function):
        return type(function) is BuiltinFunctionType
"""


@pytest.fixture
def shop(pytester: pytest.Pytester) -> pytest.Pytester:
    """A project with a module `shop`, and the start of a test module."""
    pytester.makepyfile(shop=SHOP)
    pytester.makeini("[pytest]\npythonpath = .")
    return pytester


def passes(project: pytest.Pytester, test: str, count: int, *args: str) -> pytest.RunResult:
    """Run these tests of a project, all of which pass in this order."""
    project.makepyfile(test_shop=f"{LATER}{test}")
    result = run_first(project, *args)
    result.assert_outcomes(passed=count)
    return result


# --- put back -------------------------------------------------------------------------------------

PATCHES = {
    "by monkeypatch": """
    def test_patches(monkeypatch, request):
        request.getfixturevalue("flow_runtime")
        monkeypatch.setattr(shop, "sleep", len)
        monkeypatch.setattr(time, "sleep", len)
        monkeypatch.setattr(shop, "datetime", len)
        monkeypatch.setattr(shop.dt, "datetime", len)
        monkeypatch.setenv("TZ", "Asia/Tokyo")
    """,
    "by mock.patch": """
    from unittest import mock

    @mock.patch.object(shop, "datetime")
    @mock.patch.object(shop, "sleep")
    @mock.patch("time.sleep")
    def test_patches(a, b, c, request):
        request.getfixturevalue("flow_clock")
    """,
    "by a fixture set up after the clock": """
    from unittest import mock

    @pytest.fixture
    def patched(flow_clock):
        with mock.patch("time.sleep"), mock.patch("shop.sleep"), mock.patch("shop.datetime"):
            yield

    def test_patches(patched):
        pass
    """,
    "by a fixture of the class": """
    from unittest import mock

    @pytest.fixture(scope="class")
    def patched():
        with mock.patch("time.sleep"), mock.patch("shop.sleep"), mock.patch("shop.datetime"):
            yield

    class TestPatched:
        def test_patches(self, flow_clock, request):
            request.getfixturevalue("patched")
            assert not is_real(shop.sleep)
    """,
    "by a spy": """
    from unittest import mock

    def test_patches(request, monkeypatch):
        request.getfixturevalue("flow_runtime")
        for module in (time, shop):
            monkeypatch.setattr(module, "sleep", mock.Mock(side_effect=module.sleep))
    """,
    "by a saved function": """
    def test_patches(flow_clock):
        shop.REAL["time.sleep"] = time.sleep
        shop.NEW = time.sleep, datetime.now
        shop.seconds = time.monotonic
        shop.now = datetime.now
        shop.REAL["now"] = shop.NEW[1]

    def test_saves_where_no_function_was(flow_clock):
        shop.SETTINGS["timers"][0] = time.sleep
        shop.Shelf.clock = datetime.now

    def test_they_are_real():
        assert is_real(shop.SETTINGS["timers"][0]) and is_real(shop.Shelf.clock)

    def test_saved_functions_are_real():
        assert is_real(shop.REAL["time.sleep"]) and is_real(shop.REAL["now"])
        assert all(map(is_real, shop.NEW)) and is_real(shop.now)
        assert shop.seconds is time.monotonic
        shop.seconds = time.time
    """,
    "by another import": """
    import sys

    def test_patches(monkeypatch, flow_clock):
        monkeypatch.delitem(sys.modules, "shop")
        import shop as new
        assert new is not shop and not is_real(new.sleep)
    """,
    "by mock.patch.dict": """
    from unittest import mock

    @pytest.fixture
    def patched(request):
        patch = mock.patch.dict(vars(shop), sleep=len)
        yield patch
        patch.stop()

    def test_patches(patched, request):
        request.getfixturevalue("flow_runtime")
        patched.start()
    """,
    "by a reload": """
    import importlib

    def test_patches(flow_clock):
        importlib.reload(shop)
    """,
}


WORKER = ("-p", "xdist.plugin", "-n", "1")
FEW = [*PATCHES][::3]


@pytest.mark.parametrize(
    ("patches", "workers"),
    sampled(product(PATCHES, [(), WORKER]), [*product(FEW, [()])]),
)
def test_nothing_is_left_behind_whatever_patches(shop, patches, workers):
    tests = f"""{PATCHES[patches]}
    def test_everything_is_real():
        import os, pickle
        for function in (time.sleep, time.time, shop.sleep, shop.seconds, shop.monotonic):
            assert is_real(function)
        assert is_real(datetime.now) and is_real(date.today)
        assert shop.datetime is datetime is shop.dt.datetime
        assert shop.REAL["time.sleep"] is time.sleep is shop.sleep
        assert abs(datetime.now() - NEW_YEAR).days > 1
        now = datetime.now()
        assert now == pickle.loads(pickle.dumps(now))
        assert "TZ" not in os.environ

    def test_the_next_clock_is_whole(flow_runtime):
        assert datetime.now() == shop.datetime.now() == NEW_YEAR
        assert shop.seconds() == time.time() == 1767225600
        assert not is_real(shop.sleep) and not is_real(time.sleep)
    """
    count = tests.count("def test_")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("TZ", raising=False)
        passes(shop, tests, count, *workers)


# --- patches of the test --------------------------------------------------------------------------


def test_a_patch_of_the_test_counts_before_and_after_the_clock(shop):
    passes(
        shop,
        """
    from tests.routines import chain

    @pytest.fixture(params=["before", "after"])
    def naps(request, monkeypatch):
        if request.param == "after":
            request.getfixturevalue("flow_runtime")
        naps = []
        monkeypatch.setattr(time, "sleep", naps.append)
        monkeypatch.setattr(shop, "sleep", naps.append)
        monkeypatch.setattr(shop, "seconds", lambda: 42)
        return naps

    def test_both(naps, request):
        request.getfixturevalue("flow_runtime")

        def work(self, n=0):
            time.sleep(1)
            shop.sleep(2)

        chain(work=work).execute("work").raise_for_status()
        assert naps == [1, 2]
        assert shop.seconds() == 42
        assert datetime.now() == NEW_YEAR

    def test_the_names_are_replaced_again(flow_clock):
        assert shop.seconds() == 1767225600
    """,
        3,
    )


def test_a_patch_that_calls_the_real_function_lets_virtual_time_pass(shop):
    passes(
        shop,
        """
    from unittest import mock
    from tests.routines import chain

    real = time.sleep

    def counted():
        slept = []
        original = time.sleep

        def sleep(seconds):
            slept.append(seconds)
            original(seconds)

        return sleep, slept

    def spied():
        spy = mock.Mock(wraps=time.sleep)
        return spy, spy.mock_calls

    def effect():
        spy = mock.Mock(side_effect=time.sleep)
        return spy, spy.mock_calls

    def named():
        return (lambda seconds: real(seconds)), [1]

    @pytest.mark.parametrize("make", [counted, spied, effect, named])
    @pytest.mark.parametrize("first", [True, False])
    @pytest.mark.parametrize("module", [shop, time])
    def test_spy(make, first, module, request, monkeypatch):
        clock = None if first else request.getfixturevalue("flow_clock")
        spy, calls = make()
        monkeypatch.setattr(module, "sleep", spy)
        request.getfixturevalue("flow_runtime")
        work = lambda self, n=0: module.sleep(10**6)
        chain(work=work).execute("work").raise_for_status()
        assert datetime.now() - NEW_YEAR == shop.dt.timedelta(seconds=10**6)
        assert len(calls) == 1
    """,
        16,
    )


@pytest.mark.parametrize("scope", ["function", "class", "module"])
def test_what_was_patched_at_the_first_clock_is_replaced_later(shop, scope):
    first = f"""{LATER}
    from unittest import mock

    @pytest.fixture(scope={scope!r})
    def patched():
        with mock.patch("shop.sleep"), mock.patch.object(shop.Shelf, "timer"):
            yield

    class TestPatched:
        def test_first(self, patched, flow_clock):
            assert isinstance(shop.sleep, mock.Mock)

        def test_again(self, patched, flow_clock):
            assert isinstance(shop.Shelf.timer, mock.Mock)
    """
    shop.makepyfile(test_first=first)
    passes(
        shop,
        """
    def test_later(flow_clock):
        assert not is_real(shop.sleep) and not is_real(shop.Shelf.timer)
        assert 0.0 == shop.Shelf.timer()

    def test_after():
        assert shop.sleep is time.sleep and is_real(shop.Shelf.timer)
    """,
        4,
    )


# --- functions that are kept ----------------------------------------------------------------------

KEPT = """
    from __future__ import annotations
    import time
    from dataclasses import dataclass, field
    from datetime import UTC, date, datetime
    from functools import partial
    from typing import NamedTuple

    class Moment(datetime):
        pass

    @dataclass
    class Order:
        at: datetime = field(default_factory=datetime.now)
        day: date = field(default_factory=date.today)
        utc: datetime = field(default_factory=partial(datetime.now, UTC))

    @dataclass(frozen=True, slots=True)
    class Slotted:
        at: datetime = field(default_factory=datetime.now)

    class Shop:
        clock = time.time
        now = datetime.now
        static = staticmethod(datetime.now)
        clocks = {"wall": (time.time, "s"), "list": [datetime.now]}

        def __init__(self, timer=time.monotonic, *, wall=time.time):
            self.timer, self.wall = timer, wall

        class Inner:
            clock = time.time

    class Named(NamedTuple):
        clock: object = time.time

    class Slots:
        __slots__ = ("clock",)

        def __init__(self):
            self.clock = time.time

    class Bound:
        def __init__(self, source=time.time, sources={"clock": time.time}):
            self.source, self.sources = source, sources

        def read(self):
            assert abs(self.source() - self.sources["clock"]()) < 60
            return self.source()

    def read(now=datetime.now):
        return now()

    def closed():
        original = datetime.now

        def read():
            return original()

        return read

    closure = closed()
    slots = Slots()
    named = Named()
    shop = Shop()
    timer = partial(read, now=datetime.now)
    moment = Moment.now
    utc = partial(datetime.now, UTC)
    nested = [{"timer": partial(time.time)}]
    bound = Bound().read
    handlers = {"dict": Bound().read, "list": [Bound().read], "partial": partial(Bound().read)}
    pair = (time.time, {"clock": time.time}, Bound())

    def readings():
        order = Order()
        moments = [
            order.at, order.utc.replace(tzinfo=None),
            datetime.combine(order.day, datetime.min.time()),
            Slotted().at, Shop.now(), Shop.static(), Shop.clocks["list"][0](), read(), closure(),
            timer(), moment(), utc().replace(tzinfo=None),
        ]
        seconds = [
            Shop.clock(), shop.wall(), Shop().wall(), Shop.clocks["wall"][0](), slots.clock(),
            Shop.Inner.clock(), named.clock(), Named().clock(), nested[0]["timer"](),
            bound(), handlers["dict"](), handlers["list"][0](), handlers["partial"](),
            pair[0](), pair[1]["clock"](), pair[2].read(),
        ]
        return moments, seconds, [Shop().timer(), shop.timer()]

    def kept():
        return [
            Order.__dataclass_fields__["at"].default_factory, Slotted.__dataclass_fields__["at"],
            *vars(Shop).values(), *read.__defaults__, *Shop.__init__.__kwdefaults__.values(),
            closure.__closure__[0].cell_contents, slots.clock, timer.keywords, utc.func, moment,
            bound.__self__.source, bound.__self__.sources, pair,
        ]
"""


@pytest.mark.parametrize("imported", ["at the start", "by a test", "by a frozen test"])
def test_a_function_that_a_definition_keeps_is_virtual_whatever_ran_before(shop, imported):
    shop.makepyfile(kept=KEPT)
    head = "    import kept\n" if imported == "at the start" else ""
    first = "flow_clock" if imported == "by a frozen test" else ""
    tests = f"""
{head}
    def test_imports({first}):
        import kept

    @pytest.mark.parametrize("again", [1, 2])
    def test_virtual(flow_clock, again):
        import kept
        moments, seconds, timers = kept.readings()
        assert {{NEW_YEAR}} == set(moments)
        assert {{1767225600.0}} == set(seconds)
        assert timers == [0.0, 0.0]

    def test_real():
        import kept
        moments, seconds, timers = kept.readings()
        today = datetime.now().date()
        assert all((moment.date() - today).days < 1 for moment in moments), moments
        assert all(abs(each - time.time()) < 600 for each in seconds)
        assert all(each <= time.monotonic() for each in timers)
        assert not any("virtual_time" in repr(value) for value in kept.kept())
        assert type(kept.moment()) is kept.Moment
    """
    passes(shop, tests, 4)


def test_the_search_runs_no_code_of_the_user(shop):
    shop.makepyfile(
        evil="""
        from datetime import datetime

        def fail(*args):
            raise RuntimeError("code of the user was run")

        class Meta(type):
            __setattr__ = __eq__ = __instancecheck__ = __subclasscheck__ = fail
            __hash__ = type.__hash__

        class Evil(metaclass=Meta):
            __getattr__ = __eq__ = __str__ = __repr__ = __len__ = __iter__ = __bool__ = fail
            __class__ = __dict__ = property(fail)
            now = datetime.now

        class Key:
            __str__ = __repr__ = __format__ = __bool__ = fail

        class Slots:
            __slots__ = ("empty", "__dict__")

        evil = [Evil(), {Key(): {Key(): [Slots(), Slots.__new__(Slots)]}}]
        """
    )
    passes(
        shop,
        """
    import evil

    def test_it(flow_clock):
        assert NEW_YEAR == evil.Evil.now()
    """,
        1,
    )


def test_a_definition_that_cannot_be_changed_is_named_once(shop):
    shop.makepyfile(
        models="""
        import collections, functools, sched, time
        from datetime import datetime
        from itertools import repeat

        class Order:
            ticks = repeat(datetime.now)
            last = collections.deque([time.time])

        class Bag(set):
            pass

        class Pair(tuple):
            pass

        scheduler = sched.scheduler(time.time, time.sleep)
        nested = (1, (2, time.time))
        both = (time.time, (2, time.monotonic))
        cached = functools.lru_cache(None)(time.time)
        bag = Bag([time.time])
        bag.other = time.sleep
        pair = Pair([time.time])
        keys = {time.time: "s"}
        """
    )
    tests = """
    import models

    @pytest.mark.parametrize("again", [1, 2])
    def test_it(flow_clock, again):
        assert datetime.now() == NEW_YEAR
    """
    for args in ((), ("-p", "xdist.plugin", "-n", "2")):
        result = passes(shop, tests, 2, *args)
        assert [
            "models.Order.last keeps time.time()",
            "models.Order.ticks keeps datetime.now()",
            "models.bag keeps time.time()",
            "models.both[…] keeps time.monotonic()",
            "models.cached keeps time.time()",
            "models.keys keeps time.time()",
            "models.nested[…] keeps time.time()",
            "models.pair keeps time.time()",
            "models.scheduler keeps time.sleep()",
            "models.scheduler keeps time.time()",
        ] == sorted(line for line in result.outlines if line.startswith("models."))
    assert "models.Order" in passes(shop, tests, 2, "-q").stdout.str()
    never = passes(shop, tests, 2, "--routilux-report=never")
    assert "models.Order" not in never.stdout.str()


# --- functions that are handed on -----------------------------------------------------------------


def test_a_function_that_is_handed_on_reads_virtual_time(shop):
    passes(
        shop,
        """
    import asyncio, threading
    from concurrent.futures import ThreadPoolExecutor
    from functools import partial
    from hypothesis import HealthCheck, given, settings, strategies as st
    from types import SimpleNamespace
    from tests.routines import chain

    functions = pytest.mark.parametrize(
        "read", [time.time, lambda: datetime.now().timestamp() + 0.0, partial(time.time)]
    )
    SECONDS = 1767225600.0

    @functions
    def test_pool(read, flow_clock):
        with ThreadPoolExecutor() as pool:
            assert SECONDS == pool.submit(read).result() == pool.submit(time.time).result()
            assert [NEW_YEAR] == list(pool.map(lambda _: datetime.now(), [1]))
            assert NEW_YEAR == pool.submit(datetime.now).result()
            assert 0.0 == pool.submit(time.monotonic).result(timeout=30)

    @functions
    def test_asyncio(read, flow_clock):
        async def main():
            loop = asyncio.get_running_loop()
            found = [await asyncio.to_thread(read), await loop.run_in_executor(None, time.time)]
            loop.call_soon(lambda f: found.append(f()), time.time)
            loop.call_soon(lambda: found.append(time.time()))
            moment = await asyncio.to_thread(datetime.now)
            await asyncio.sleep(0.001)
            return found, moment

        assert ([SECONDS] * 4, NEW_YEAR) == asyncio.run(main())

    def test_engine(flow_runtime):
        def work(self, n=0):
            self.emit("out", n=[self.ctx.once("a", time.time), self.ctx.once("b", datetime.now)])

        job = chain(work=work).execute("work")
        assert [SECONDS, NEW_YEAR] == job.outputs[0].data["n"]

    @given(st.builds(datetime.now), st.builds(time.time))
    @settings(
        max_examples=3, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
    def test_hypothesis(flow_clock, moment, seconds):
        assert (NEW_YEAR, SECONDS) == (moment, seconds)

    @given(st.data())
    @settings(
        max_examples=3, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
    def test_hypothesis_inside(flow_clock, data):
        assert NEW_YEAR == data.draw(st.builds(datetime.now))

    @pytest.fixture
    def now():
        return datetime.now

    @pytest.fixture
    def shelf():
        return SimpleNamespace(clock=time.time, clocks=[datetime.now])

    def test_fixture(now, shelf, flow_clock):
        assert (NEW_YEAR, SECONDS, NEW_YEAR) == (now(), shelf.clock(), shelf.clocks[0]())

    def test_thread(flow_clock):
        found = []
        thread = threading.Thread(target=lambda read: found.append(read()), args=[time.time])
        thread.start()
        thread.join()
        assert [SECONDS] == found
    """,
        11,
    )
