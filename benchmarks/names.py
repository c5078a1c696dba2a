"""Names operations per second, and what they cost the storage in CPU.

A storage in a process of its own on loopback: one session with N requests in flight, then N
sessions with one each::

    python -m benchmarks.names [--directory DIR] [--count N]

With ``--pipelined N`` one session that always has N changes of names in flight, as a mount that
answers ahead. ``--rate R`` sends R per second, each by itself, or with ``--gather MS`` those of so
many milliseconds together.

CPU is that of the storage's process (user and system), from /proc.
"""

from __future__ import annotations

import argparse
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from functools import partial
from pathlib import Path

import trio

from benchmarks import pipelined
from fdfsfuse.client.address import Address
from fdfsfuse.client.names import NamesSession, open_session
from fdfsfuse.client.views import Candidate
from fdfsfuse.proto import names
from tests.common.names_server import HOST, OWN_ID, names_server

FILE = stat.S_IFREG | 0o644
DIRECTORY = stat.S_IFDIR | 0o755
SESSIONS = 8


async def serve(directory: Path) -> None:
    """Be the storage: say the port, then serve until killed."""
    async with names_server(directory) as server:
        print(server.port, flush=True)
        await trio.sleep_forever()


def cpu_s(pid: int) -> float:
    """CPU seconds that the threads of a process have used."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


class Bench:
    """Runs operations on a session and prints what they cost."""

    def __init__(self, sessions: Sequence[NamesSession], pid: int, count: int) -> None:
        self._sessions = sessions
        self._session = sessions[0]
        self._pid = pid
        self._count = count

    async def measure(
        self, title: str, in_flight: int, one: Callable[[int], Awaitable[object]], share: int = 1
    ) -> None:
        """Call ``one(number)`` count / *share* times, *in_flight* at a time."""
        count = self._count // share

        async def worker(first: int) -> None:
            for number in range(first, count, in_flight):
                await one(number)

        cpu, start = cpu_s(self._pid), time.perf_counter()
        async with trio.open_nursery() as nursery:
            for first in range(in_flight):
                nursery.start_soon(worker, first)
        wall = time.perf_counter() - start
        cpu = cpu_s(self._pid) - cpu
        print(
            f"{title:24} {in_flight:3} in flight {count / wall:8.0f} /s"
            f" {cpu / count * 1e6:7.0f} us CPU of the storage",
            flush=True,
        )

    async def run(self) -> None:
        """All measurements."""
        call, now = self._session.call, time.time_ns()
        inos: dict[int, int] = {}
        for in_flight in (1, 8, 64):
            create = names.Create(names.ROOT_INO, b"d%d" % in_flight, DIRECTORY, 0, 0, now)
            directory = (await call(create)).ino

            async def create_one(number: int, directory: int = directory) -> None:
                name = b"f%d.dat" % number
                made = await call(names.Create(directory, name, FILE, 0, 0, now))
                inos[number] = made.ino

            async def lookup_one(number: int, directory: int = directory) -> None:
                await call(names.Lookup(directory, b"f%d.dat" % number))

            async def store_one(number: int) -> None:
                await call(names.StoreContent(inos[number], b"x" * 4096, now))

            async def open_one(number: int) -> None:
                await call(names.Open(inos[number], 1 << 20))

            async def rename_one(number: int, directory: int = directory) -> None:
                old, new = b"f%d.dat" % number, b"g%d.dat" % number
                await call(names.Rename(directory, old, directory, new, 0, now))

            async def link_one(number: int, directory: int = directory) -> None:
                await call(names.Link(inos[number], directory, b"l%d" % number, now))

            async def unlink_one(number: int, directory: int = directory) -> None:
                await call(names.Remove(directory, b"l%d" % number, False, now))

            await self.measure("create", in_flight, create_one)
            await self.measure("lookup", in_flight, lookup_one)
            await self.measure("store 4 KiB", in_flight, store_one)
            await self.measure("open 4 KiB", in_flight, open_one)
            await self.measure("rename", in_flight, rename_one)
            await self.measure("link", in_flight, link_one)
            await self.measure("unlink", in_flight, unlink_one)
        large = b"x" * names.SMALL_CONTENT_MAX
        await self.measure(
            "store 1 MiB", 4, lambda n: call(names.StoreContent(inos[n], large, now)), share=20
        )
        for sessions in (2, len(self._sessions)):
            create = names.Create(names.ROOT_INO, b"s%d" % sessions, DIRECTORY, 0, 0, now)
            directory = (await call(create)).ino

            async def create_there(
                number: int, sessions: int = sessions, directory: int = directory
            ) -> None:
                # Worker i of `measure` has the numbers i, i + sessions, ...
                name = b"f%d.dat" % number
                session = self._sessions[number % sessions]
                await session.call(names.Create(directory, name, FILE, 0, 0, now))

            await self.measure(f"create, {sessions} sessions", sessions, create_there)


@contextmanager
def storage(directory: Path) -> Iterator[tuple[int, int]]:
    """A storage: its process id and port."""
    command = [sys.executable, "-m", "benchmarks.names", "--serve", str(directory)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process.pid, int(process.stdout.readline())
    finally:
        process.kill()
        process.wait()


async def measure(pid: int, port: int, count: int) -> None:
    """Measure the storage that listens there."""

    async def find() -> list[Candidate]:
        return [Candidate(OWN_ID, Address(HOST, port))]

    async with AsyncExitStack() as stack:
        sessions = []
        for number in range(SESSIONS):
            opened = open_session(find, client=f"benchmark {number}")
            sessions.append(await stack.enter_async_context(opened))
            await sessions[-1].wait_connected()
        await Bench(sessions, pid, count).run()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--directory", type=Path)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--pipelined", type=int, metavar="N")
    parser.add_argument("--rate", type=float, default=0, metavar="R", help="with --pipelined")
    parser.add_argument("--gather", type=float, default=0, metavar="MS", help="with --rate")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        trio.run(serve, options.serve)
    else:
        base = Path(tempfile.mkdtemp(dir=options.directory))
        try:
            with storage(base) as (pid, port):
                if options.pipelined:
                    cpu = partial(cpu_s, pid)
                    pipelined.measure(
                        (HOST, port),
                        cpu,
                        options.count,
                        options.pipelined,
                        options.rate,
                        options.gather / 1000,
                    )
                else:
                    trio.run(measure, pid, port, options.count)
        finally:
            shutil.rmtree(base)
