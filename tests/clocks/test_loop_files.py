"""Real I/O in a `VirtualLoop`: virtual time waits for it, and not for idle connections."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, Final, TypeVar

import httpx
import pytest
from aiohttp import web

from routilux import ClockStalledError, FakeClock
from tests.clocks.real_clients import (
    HOUR,
    Client,
    aiohttp_client,
    each_client,
    httpx_client,
    psycopg_client,
    stream_client,
)
from tests.clocks.real_servers import TAKES, Server, real_server
from tests.routines import PATIENCE, SECOND

T = TypeVar("T")


@pytest.fixture
def clock() -> FakeClock:
    """A clock that shows a wait for an idle file: such a wait takes ten minutes."""
    clock = FakeClock()
    clock.patience_ns = 600 * SECOND
    return clock


@pytest.fixture
def remote() -> Iterator[Server]:
    with real_server() as made:
        yield made


def run(clock: FakeClock, main: Coroutine[Any, Any, T]) -> T:
    start = time.monotonic()
    with asyncio.Runner(loop_factory=clock.new_event_loop) as runner:
        result = runner.run(main)
    assert time.monotonic() - start < PATIENCE
    return result


def seconds(clock: FakeClock) -> float:
    return clock.monotonic_ns() / SECOND


@each_client
def test_a_timeout_waits_for_a_real_answer(client: Client, clock, remote, dsn):
    async def main() -> None:
        async with asyncio.timeout(HOUR), client(remote, dsn) as request:
            for _ in range(3):
                await request()

    start = time.monotonic()
    run(clock, main())
    # psycopg looks for an interrupt every 0.1 s, and such timers run while the answer takes longer.
    assert seconds(clock) <= (time.monotonic() - start) * (client is psycopg_client)


@each_client
def test_an_idle_connection_does_not_hold_virtual_time(client: Client, clock, remote, dsn):
    async def main() -> None:
        event = asyncio.Event()
        waits = asyncio.create_task(event.wait())  # for no file
        async with client(remote, dsn) as request:
            for _ in range(3):
                await request()
                await asyncio.sleep(HOUR)
        event.set()
        await waits

    start = time.monotonic()
    run(clock, main())
    polled = (time.monotonic() - start) * (client is psycopg_client)  # as above
    assert 3.0 * HOUR <= seconds(clock) <= 3.0 * HOUR + polled


@each_client
def test_virtual_timers_run_while_a_real_answer_is_on_its_way(client: Client, clock, remote, dsn):
    beats: list[int] = []

    async def beat() -> None:
        while True:
            await asyncio.sleep(TAKES / 5)
            beats.append(clock.monotonic_ns())

    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            beating = group.create_task(beat())
            async with asyncio.timeout(HOUR), client(remote, dsn) as request:
                await request()
                await request()
            beating.cancel()

    start = time.monotonic_ns()
    run(clock, main())
    assert [1_000_000 * (k + 1) for k in range(len(beats))] == beats
    assert clock.monotonic_ns() <= time.monotonic_ns() - start


# --- real waits are charged -----------------------------------------------------------------------


def test_a_timeout_ends_a_real_wait_after_as_much_real_time(clock, remote):
    remote.answers.clear()

    async def main() -> None:
        async with httpx.AsyncClient(timeout=HOUR) as client:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.02):
                    await client.get(remote.url)
            remote.answers.set()
            assert remote.closed.acquire(timeout=PATIENCE)  # the cancelled client closed it

    start = time.monotonic()
    run(clock, main())
    assert 0.02 <= time.monotonic() - start
    assert 20_000_000 == clock.monotonic_ns()


def test_time_continues_after_the_patience_with_a_silent_server(remote):
    clock = FakeClock()
    clock.patience_ns = 20_000_000
    remote.answers.clear()

    async def main() -> None:
        async with stream_client(remote, "") as request:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(HOUR):
                    await request()
            for _ in range(1_000):  # its patience is spent: nobody waits for the file
                await asyncio.sleep(HOUR)

    start = time.monotonic()
    run(clock, main())
    assert 0.02 <= time.monotonic() - start
    assert 1_001.0 * HOUR == seconds(clock)


def test_each_new_wait_has_its_own_patience(remote):
    clock = FakeClock()
    clock.patience_ns = 20_000_000
    remote.answers.clear()

    async def main() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", remote.port)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(HOUR):
                await reader.readline()
        clock.patience_ns = 600 * SECOND
        remote.answers.set()
        async with asyncio.timeout(HOUR):
            writer.write(b"hello\n")
            assert b"hello\n" == await reader.readline()
        writer.close()

    run(clock, main())
    assert float(HOUR) == seconds(clock)


def test_a_wait_for_a_file_without_any_timer_is_stalled_after_the_patience(remote):
    clock = FakeClock()
    clock.patience_ns = 20_000_000

    async def main() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", remote.port)
        try:
            await reader.readline()
        finally:
            writer.close()

    with pytest.raises(ClockStalledError, match="the event loop of thread 'MainThread' waits"):
        run(clock, main())


# --- both ends on one clock -----------------------------------------------------------------------


async def echo_later(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while line := await reader.readline():
        await asyncio.sleep(HOUR)
        writer.write(line)
    writer.close()


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    for _ in range(3):
        writer.write(b"hello\n")
        assert b"hello\n" == await reader.readline()
    writer.close()
    await asyncio.sleep(1)  # until the other end is closed


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0", "::1"])
def test_no_real_time_passes_between_two_ends_in_one_loop(host, clock):
    async def main() -> None:
        try:
            server = await asyncio.start_server(echo_later, host, 0)
        except OSError:
            pytest.skip(f"this machine has no {host}")
        async with server:
            port = server.sockets[0].getsockname()[1]
            client = host.replace("0.0.0.0", "127.0.0.1")
            clients = [await asyncio.open_connection(client, port) for _ in range(3)]
            await asyncio.gather(*(ask(*ends) for ends in clients))

    run(clock, main())
    assert 3.0 * HOUR + 1 == seconds(clock)


def test_what_a_connection_sends_in_parts_arrives_at_once(clock):
    # asyncio lets no socket send at once that was made without a protocol, as by create_server.
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            writer.write(line[:1])
            writer.write(line[1:])
        writer.close()

    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            server = await asyncio.start_server(answer, sock=listener)
            async with server, asyncio.timeout(HOUR):
                reader, writer = await asyncio.open_connection(*listener.getsockname())
                for _ in range(30):  # the system delays its receipts only after the first few
                    writer.write(b"line\n")
                    assert b"line\n" == await reader.readline()
                writer.close()
                assert b"" == await reader.read()

    run(clock, main())
    assert 0 == seconds(clock)


@pytest.mark.parametrize("paused", ["client", "server"])
def test_a_connection_that_reads_nothing_now_is_still_an_end(paused, clock):
    # A client may pause between two requests, and the code of its server wait for another thing.
    async def main() -> None:
        ends: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        server = await asyncio.start_server(lambda *end: ends.append(end), "127.0.0.1", 0)
        async with server:
            client = await asyncio.open_connection(*server.sockets[0].getsockname())
            await asyncio.sleep(1)
            pausing, waiting = (client, ends[0]) if paused == "client" else (ends[0], client)
            pausing[1].transport.pause_reading()  # type: ignore[attr-defined]
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(waiting[0].read(1), HOUR)
            pausing[1].write(b"x")
            assert b"x" == await waiting[0].read(1)
            pausing[1].close()
            assert b"" == await waiting[0].read(1)
            waiting[1].close()
            await asyncio.sleep(1)

    run(clock, main())
    assert HOUR + 2.0 == seconds(clock)
    assert not +clock.addresses._connected


def test_no_real_time_passes_between_two_ends_of_a_unix_socket(clock, tmp_path: Path):
    path = tmp_path / "socket"

    async def main() -> None:
        async with await asyncio.start_unix_server(echo_later, path):
            await ask(*await asyncio.open_unix_connection(path))

    run(clock, main())
    assert 3.0 * HOUR + 1 == seconds(clock)


def test_no_real_time_passes_between_two_ends_in_two_loops(clock):
    ports: list[int] = []

    async def serve(done: threading.Event) -> None:
        async with await asyncio.start_server(echo_later, "127.0.0.1", 0) as server:
            ports.append(server.sockets[0].getsockname()[1])
            while not done.is_set():  # noqa: ASYNC110 - of another loop
                await asyncio.sleep(60)

    async def ask_from_here() -> None:
        while not ports:  # noqa: ASYNC110 - of another loop
            await asyncio.sleep(60)
        await ask(*await asyncio.open_connection("127.0.0.1", ports[0]))

    async def main() -> None:
        done = threading.Event()
        serving = asyncio.create_task(asyncio.to_thread(run, clock, serve(done)))
        await asyncio.to_thread(run, clock, ask_from_here())
        done.set()
        await serving

    run(clock, main())
    assert 3.0 * HOUR <= seconds(clock) < 3.0 * HOUR + 180


def test_datagrams_between_two_ends_on_one_clock_pass_no_real_time(clock):
    class Echo(asyncio.DatagramProtocol):
        def connection_made(self, transport: Any) -> None:
            self.transport = transport

        def datagram_received(self, data: bytes, address: Any) -> None:
            loop = asyncio.get_running_loop()
            loop.call_later(HOUR, self.transport.sendto, data, address)

    class Ask(asyncio.DatagramProtocol):
        def __init__(self) -> None:
            self.answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

        def datagram_received(self, data: bytes, address: Any) -> None:
            self.answer.set_result(data)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        server, _ = await loop.create_datagram_endpoint(Echo, local_addr=("127.0.0.1", 0))
        address = server.get_extra_info("sockname")
        client, asking = await loop.create_datagram_endpoint(Ask, remote_addr=address)
        client.sendto(b"hello")
        assert b"hello" == await asking.answer
        client.close()
        server.close()

    run(clock, main())
    assert float(HOUR) == seconds(clock)


@pytest.mark.parametrize("client", [httpx_client, aiohttp_client])
def test_a_web_server_and_its_client_share_virtual_time(client: Any, clock):
    async def hello(_: web.Request) -> web.Response:
        await asyncio.sleep(60)
        return web.Response(text="hello")

    async def main() -> None:
        app = web.Application()
        app.router.add_get("/", hello)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        made = type("Site", (), {"url": f"http://127.0.0.1:{runner.addresses[0][1]}/"})
        async with client(made, "") as request:
            for _ in range(3):
                await request()
        await runner.cleanup()

    run(clock, main())
    assert 180.0 == seconds(clock)


# --- processes and pipes --------------------------------------------------------------------------

WORKS: Final = (
    "import time; time.sleep(0.005); print('a', flush=True); time.sleep(0.005); print('b')"
)


def test_a_child_process_is_waited_for_in_real_time(clock):
    async def main() -> None:
        async with asyncio.timeout(HOUR):
            child = await asyncio.create_subprocess_exec(
                sys.executable, "-S", "-c", WORKS, stdout=subprocess.PIPE
            )
            output, _ = await child.communicate()
            assert ["a", "b"] == output.decode().split()
            child = await asyncio.create_subprocess_exec(sys.executable, "-S", "-c", "")
            assert 0 == await child.wait()

    run(clock, main())
    assert 0.0 == seconds(clock)


def test_a_child_process_that_no_code_waits_for_holds_no_virtual_time(clock):
    async def main() -> None:
        child = await asyncio.create_subprocess_exec("sleep", "600", stdout=subprocess.PIPE)
        for _ in range(10):
            await asyncio.sleep(HOUR)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.005):
                await child.wait()
        child.kill()
        async with asyncio.timeout(HOUR):
            await child.wait()

    run(clock, main())
    assert 10 * HOUR * SECOND + 5_000_000 == clock.monotonic_ns()


def test_a_pair_of_sockets_with_a_thread_at_its_other_end_is_waited_for(clock):
    async def main() -> None:
        here, there = socket.socketpair()
        reader, writer = await asyncio.open_connection(sock=here)

        def answer() -> None:
            there.send(there.recv(100).upper())
            there.close()

        thread = threading.Thread(target=answer)
        thread.start()
        async with asyncio.timeout(HOUR):
            writer.write(b"hello")
            assert b"HELLO" == await reader.read()
        writer.close()
        thread.join()

    run(clock, main())
    assert 0.0 == seconds(clock)
