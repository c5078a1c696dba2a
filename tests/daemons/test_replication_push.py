"""What is logged goes to the peers from memory, at once; the files are the way when that fails."""

from __future__ import annotations

import dataclasses
import errno
import os
import random
import resource
import select
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from fdfs_storage import binlog as binlog_module
from fdfs_storage import files
from fdfs_storage.binlog import Binlog, BinlogPosition
from fdfs_storage.binlog_reader import BinlogReader
from fdfs_storage.recent import RecentContents
from fdfs_storage.replication.requests import Request, Requests
from fdfs_storage.replication.stream import Stream
from fdfs_storage.transfer import crc32
from fdfsfuse.errors import StatusError
from fdfsfuse.proto.fileid import Location
from tests.common.waiting import wait_for
from tests.daemons.sync_pair import Node, run_node, sync_config


@asynccontextmanager
async def caught_up_pair(tmp_path: Path) -> AsyncIterator[tuple[Node, Node]]:
    """Two storages that push to each other, and have nothing to push."""
    with trio.fail_after(60):
        async with run_node(tmp_path / "a", "1") as a, run_node(tmp_path / "b", "2") as b:
            a.meet(b)
            b.meet(a)
            for node in (a, b):
                (pusher,) = node.replication.pushers.values()
                await wait_for(lambda pusher=pusher: pusher.caught_up)  # type: ignore[misc]
            # Both tasks wait for news now, unless they have just been woken.
            await trio.testing.wait_all_tasks_blocked(0.01)
            yield a, b


def make(node: Node, content: bytes) -> Location:
    """Make an object in the node's store."""
    location = node.store.creations.make_name(len(content), crc32(content), 1, "")
    node.store.creations.write_at(location, content)
    return location


def sent(node: Node) -> int:
    """Requests that the node has sent for records."""
    (pusher,) = node.replication.pushers.values()
    assert pusher._stream is not None
    return pusher._stream.sent


async def test_what_is_gathered_is_sent_without_a_turn_of_the_loop(tmp_path: Path) -> None:
    async with caught_up_pair(tmp_path) as (a, b):
        before = sent(a)
        with a.replication.in_sync.gathered():
            first = make(a, b"first")
            second = make(a, b"second")
            a.store.write_metadata(first, b"a\x021")
            assert sent(a) == before
        assert sent(a) == before + 3
        await a.wait_until_has_all(b)
        assert b.content(first.name) == b"first"
        assert b.content(second.name) == b"second"
        assert b.content(first.name + "-m") == b"a\x021"


async def test_the_files_are_not_read_again(tmp_path: Path) -> None:
    async with caught_up_pair(tmp_path) as (a, b):
        with a.replication.in_sync.gathered():
            location = make(a, b"content")
            a.path(location.name).write_bytes(b"replaced behind our back")
        await a.wait_until_has_all(b)
        assert b.content(location.name) == b"content"


async def test_answers_that_have_arrived_are_taken_without_a_turn_of_the_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with caught_up_pair(tmp_path) as (a, b):
        (pusher,) = a.replication.pushers.values()
        link, in_sync = pusher.link, a.replication.in_sync
        assert link is not None

        def not_yet() -> list[tuple[int, bytes]]:
            link._drained = True
            return []

        with monkeypatch.context() as context:
            context.setattr(link, "receive_nowait", not_yet)
            with in_sync.gathered():
                make(a, b"first")
            await wait_for(lambda: bool(select.select([link._sock], [], [], 0)[0]))
        assert pusher.acked < a.store.binlog.position
        in_sync.look()
        assert pusher.acked == a.store.binlog.position
        in_sync.look()
        # A connection that breaks is noticed, and there is another one.
        with in_sync.gathered():
            made = make(a, b"second")
        link._sock.shutdown(socket.SHUT_RDWR)
        in_sync.look()
        await a.wait_until_has_all(b)
        assert b.content(made.name) == b"second"
        assert pusher.link is not link


async def test_more_than_the_connection_takes(tmp_path: Path) -> None:
    rng = random.Random(1)
    async with caught_up_pair(tmp_path) as (a, b):
        with a.replication.in_sync.gathered():
            made = [make(a, rng.randbytes(rng.choice((10, 60_000, 200_000)))) for _ in range(150)]
        with a.replication.in_sync.gathered():
            made.append(make(a, b"the last"))
        await a.wait_until_has_all(b)
        assert all(b.content(one.name) == a.content(one.name) for one in made)
        assert len(b.lines()) == len(made)


class AtTheEndOfTheWait(trio.abc.Instrument):
    """Calls *act* once, when the time of a waiting stream is up and its task has not run yet."""

    def __init__(self, stream: Stream, act: Callable[[], None]) -> None:
        self.done = False
        self._stream = stream
        self._act = act
        self._task: trio.lowlevel.Task | None = None
        self._wait = stream._wait_for_news

    async def wait(self) -> None:
        self._task = trio.lowlevel.current_task()
        await self._wait()

    def task_scheduled(self, task: trio.lowlevel.Task) -> None:
        waits = self._stream._waiting and not self._stream._wake.is_set()
        if task is self._task and waits and not self.done:
            self.done = True
            self._act()


async def test_no_keep_alive_goes_into_the_middle_of_a_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(sync_config(tmp_path / "a"), heart_beat_interval_s=0.05)
    with trio.fail_after(60):
        async with (
            run_node(tmp_path / "a", "1", config=config) as a,
            run_node(tmp_path / "b", "2") as b,
        ):
            a.meet(b)
            pusher = next(iter(a.replication.pushers.values()))
            await wait_for(lambda: pusher.caught_up)
            stream, link = pusher._stream, pusher.link
            assert stream is not None
            assert link is not None
            send, made = link.send_nowait, list[Location]()
            monkeypatch.setattr(link, "send_nowait", lambda data: send(data[:200]))

            def change() -> None:
                with a.replication.in_sync.gathered():
                    made.append(a.store.creations.make_name(0, 0, 1, "", appender=True))
                    a.store.creations.write_at(made[0], b"0" * 1000)

            change_then = AtTheEndOfTheWait(stream, change)
            monkeypatch.setattr(stream, "_wait_for_news", change_then.wait)
            trio.lowlevel.add_instrument(change_then)
            await wait_for(lambda: change_then.done)
            await a.wait_until_has_all(b)
            trio.lowlevel.remove_instrument(change_then)
            assert b.content(made[0].name) == b"0" * 1000
            assert pusher.link is link


async def test_changes_of_one_file_in_a_row(tmp_path: Path) -> None:
    async with caught_up_pair(tmp_path) as (a, b):
        with a.replication.in_sync.gathered():
            kept, gone = make(a, b"kept"), make(a, b"gone")
            for number in range(5):
                a.store.write_metadata(kept, b"a\x02%d" % number)
                a.store.write_metadata(gone, b"a\x02%d" % number)
            a.store.write_metadata(kept, b"")
            a.store.write_metadata(kept, b"b\x02last")
            a.store.delete(gone)
            appender = a.store.creations.make_name(0, 0, 1, "", appender=True)
            a.store.creations.create_empty(appender)
            a.store.appenders.pwrite(appender, 0, b"0123456789")
            a.store.appenders.truncate(appender, 4)
            a.store.appenders.pwrite(appender, 4, b"abc")
        await a.wait_until_has_all(b)
        assert a.files() == b.files()
        assert b.content(kept.name + "-m") == b"b\x02last"
        assert b.content(appender.name) == b"0123abc"
        assert b.content(gone.name) is None


async def test_a_size_that_no_file_can_have_holds_up_nothing(tmp_path: Path) -> None:
    async with caught_up_pair(tmp_path) as (a, b):
        appender = a.store.creations.make_name(0, 0, 1, "", appender=True)
        a.store.creations.write_at(appender, b"content")
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (8 << 20, limits[1]))
        try:
            with pytest.raises(StatusError, match="File too large"):
                a.store.appenders.truncate(appender, 9 << 20)
            make(a, b"later")
            await a.wait_until_has_all(b)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert b.content(appender.name) == b"content"
        assert a.files() == b.files()


async def test_files_stay_open_between_their_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(1)
    async with caught_up_pair(tmp_path) as (a, b):
        one, other = (a.store.creations.make_name(0, 0, 1, "", appender=True) for _ in range(2))
        for location in (one, other):
            a.store.creations.write_at(location, bytes(1 << 20))
        before = a.store.binlog.position
        with a.replication.in_sync.gathered():
            # Large parts are sent from their file, which has to stay open for that.
            for location, length in [(one, 700), (one, 100_000), (one, 700), (other, 700)] * 3:
                data = rng.randbytes(length)
                a.store.appenders.pwrite(location, rng.randrange(1 << 20), data)
            a.store.appenders.pwrite_pieces(other, [(5, 2), (2 << 20, 3), (0, 1)], b"xyendz")
        await a.wait_until_has_all(b)
        for location in (one, other):
            assert b.content(location.name) == a.content(location.name)
        records = [record for record, _ in a.store.binlog.read(before)]
        requests, opened = Requests(a.store, "group1"), list[str]()
        os_open, descriptors = os.open, len(os.listdir("/proc/self/fd"))

        def watched(path: str, flags: int) -> int:
            opened.append(path)
            return os_open(path, flags)

        expected = [read_all(requests.make(record)) for record in records]
        with monkeypatch.context() as patch, requests.keeping_open():
            patch.setattr(os, "open", watched)
            made = [requests.make(record) for record in records]
        assert [read_all(request) for request in made] == expected
        first, second = a.store.path(one), a.store.path(other)
        assert opened == [first, first, second] * 3
        assert len(os.listdir("/proc/self/fd")) == descriptors


def read_all(request: Request | None) -> bytes:
    """All that a request sends."""
    assert request is not None
    data = request.data + bytes(request.content)
    for head, offset, count in request.pieces:
        data += head + os.pread(request.fd, count, offset)
    request.close()
    return data


@pytest.mark.parametrize("offset", [2, 10])
async def test_a_piece_that_was_written_in_part_is_the_same_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offset: int
) -> None:
    """So is one that was cut off by the end of the process: the line comes first."""
    async with caught_up_pair(tmp_path) as (a, b):
        appender = a.store.creations.make_name(0, 0, 1, "", appender=True)
        a.store.creations.write_at(appender, b"0123456789")
        await a.wait_until_has_all(b)

        def write_half(fd: int, data: bytes, position: int) -> None:
            os.pwrite(fd, data[:2], position)
            raise OSError(errno.ENOSPC, "full")

        monkeypatch.setattr(files, "pwrite_all", write_half)
        with pytest.raises(StatusError) as raised:
            a.store.appenders.pwrite(appender, offset, b"abcd")
        assert raised.value.errno == errno.ENOSPC
        await a.wait_until_has_all(b)
        content = b"0123456789"[:offset] + b"ab" + b"0123456789"[offset + 2 :]
        assert a.content(appender.name) == b.content(appender.name) == content


async def test_what_peers_sent_is_passed_over_in_memory(tmp_path: Path) -> None:
    async with caught_up_pair(tmp_path) as (a, b):
        for number in range(10):
            make(a, b"%d" % number)
        await a.wait_until_has_all(b)
        assert b.replication.pushers["1"].acked == b.store.binlog.position
        make(b, b"and the other way")
        await b.wait_until_has_all(a)
        assert sent(b) == 1
        assert a.files() == b.files()


async def test_waiting_for_peers_when_a_new_binlog_file_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(binlog_module, "FILE_SIZE_MAX", 150)
    async with caught_up_pair(tmp_path) as (a, b):
        for number in range(12):
            with a.replication.in_sync.gathered():
                made = make(a, b"%d" % number)
            await a.wait_until_has_all(b)
            assert b.content(made.name) == b"%d" % number
        assert a.store.binlog.position.number >= 4
        await b.wait_until_has_all(a)


async def test_a_file_that_cannot_be_read_ends_the_connection_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with caught_up_pair(tmp_path) as (a, b):
        failed = []

        def fail(name: str) -> None:
            failed.append(name)
            monkeypatch.undo()
            raise OSError(5, "the disk failed")

        monkeypatch.setattr(a.store.changes.recent, "get", fail)
        with a.replication.in_sync.gathered():
            made = make(a, b"content")
        await a.wait_until_has_all(b)
        assert failed == [made.name]
        assert b.content(made.name) == b"content"


# --- what is kept in memory -------------------------------------------------------------------


def test_recent_contents_are_bounded_and_never_old() -> None:
    recent = RecentContents(bytes_max=100, count_max=4)
    for number in range(10):
        recent.note(f"file{number}", bytes(30))
    assert [number for number in range(10) if recent.get(f"file{number}") is not None] == [7, 8, 9]
    recent.note("file9", b"new")
    assert recent.get("file9") == b"new"
    recent.note("file9", None)
    recent.note("never heard of", None)
    assert recent.get("file9") is None
    for number in range(20, 30):
        recent.note(f"file{number}", b"")
    assert sum(recent.get(f"file{number}") is not None for number in range(30)) == 4
    recent.note("large", bytes(1 << 20))
    assert recent.get("large") is None


def test_lines_that_were_fed_and_lines_of_the_file(tmp_path: Path) -> None:
    rng = random.Random(2)
    binlog = Binlog.open(tmp_path)
    reader = BinlogReader(binlog, BinlogPosition(0, 0))
    binlog.on_append = lambda lines, start: reader.feed(lines, start) if feeding else None
    wanted: list[str] = []
    seen: list[str] = []
    for number in range(500):
        feeding = rng.random() < 0.8
        name = f"M00/00/00/file{number}"
        binlog.append(f"{number} C {name}\n".encode())
        wanted.append(name)
        if rng.random() < 0.3:
            found = reader.read(rng.choice((1, 100)))
            seen += [record.name for record, _ in found if record is not None]
    while found := reader.read(7):
        seen += [record.name for record, _ in found if record is not None]
    assert seen == wanted
    assert reader.position == binlog.position
    reader.close()
    binlog.close()
