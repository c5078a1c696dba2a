"""A storage joins trackers, stays joined and comes back: against trackers of ours and by script."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from fdfs_storage.identity import Identity
from fdfs_storage.membership import Membership
from fdfs_storage.place import Place, learn
from fdfsfuse.core.config import IdType, ServerAddress, StorageConfig, StorageIds, StorePath
from fdfsfuse.errors import ConnectionProblem, StatusError
from fdfsfuse.proto.changelog import ChangelogLine, IpChange
from fdfsfuse.proto.cluster import Brief, Changes, Join, Joined, SyncReport, SyncSource
from fdfsfuse.proto.cluster_status import FounderAnswer, FounderQuery, decode, encode
from fdfsfuse.proto.header import HEADER_SIZE, pack_response, unpack_header
from fdfsfuse.proto.parameters import Parameters
from fdfsfuse.proto.statistics import Statistics
from fdfsfuse.proto.tracker import ServerStatus
from tests.daemons.tracker_server import TRACKER_IP, TestTracker, running_tracker, wait_for

STORAGE_IP = "127.0.0.21"
PORT = 33000
PLACE = Place(Parameters(), STORAGE_IP, STORAGE_IP)


def storage_config(directory: Path, ports: list[int], **changes: Any) -> StorageConfig:
    settings: dict[str, Any] = {
        "group_name": "group1",
        "base_path": str(directory),
        "store_paths": (StorePath(str(directory)),),
        "tracker_servers": tuple(ServerAddress((TRACKER_IP,), port) for port in ports),
        "bind_addr": (STORAGE_IP,),
        "connect_timeout_s": 2.0,
        "network_timeout_s": 2.0,
    }
    return StorageConfig(**(settings | changes))


class Node:
    """A membership with what surrounds it in the daemon."""

    def __init__(self, config: StorageConfig, place: Place) -> None:
        self.identity = Identity.load(config.base_path, 1000)
        self.statistics = Statistics()
        self.space = [(5000, 2000)]
        self.founded = 0
        self.membership = Membership(
            config,
            self.identity,
            place,
            port=PORT,
            statistics=lambda: self.statistics,
            space=lambda: self.space,
            found=self._found,
        )

    async def _found(self) -> None:
        assert not self.identity.sync_old_done, "only before it is written down"
        self.founded += 1


@asynccontextmanager
async def running(config: StorageConfig, place: Place = PLACE) -> AsyncIterator[Node]:
    node = Node(config, place)
    async with trio.open_nursery() as nursery:
        await nursery.start(node.membership.run)
        yield node
        nursery.cancel_scope.cancel()


async def joined(node: Node) -> None:
    with trio.fail_after(10):
        await node.membership.wait_joined()


def active(tracker: TestTracker, storage_id: str = STORAGE_IP) -> bool:
    group = tracker.cluster.groups.get("group1")
    server = None if group is None else group.servers.get(storage_id)
    return server is not None and server.status is ServerStatus.ACTIVE


# With a tracker of ours ---------------------------------------------------------------------------


async def test_learning_the_own_place(tmp_path: Path) -> None:
    async with running_tracker(tmp_path / "t") as tracker:
        place = await learn(storage_config(tmp_path / "s", [tracker.port]), PORT)
        assert (place.my_ip, place.storage_id, place.source_in_names) == (STORAGE_IP,) * 3
        assert place.parameters.reserved_storage_space == "1024MB"


@pytest.mark.parametrize("trust", [True, False])
async def test_learning_the_own_storage_id(tmp_path: Path, trust: bool) -> None:
    table = StorageIds.parse(f"100001 group1 {STORAGE_IP}:1\n100002 group1 {STORAGE_IP}", "ids")
    async with running_tracker(
        tmp_path / "t",
        storage_ids=table,
        id_type_in_filename=IdType.ID,
        trust_storage_server_id=trust,
    ) as tracker:
        config = storage_config(tmp_path / "s", [tracker.port])
        place = await learn(config, PORT)
        assert (place.my_ip, place.source_in_names) == (STORAGE_IP, "100002")
        assert place.storage_ids == table
        async with running(config, place) as node:
            await joined(node)
            assert active(tracker, "100002")
        own = await learn(storage_config(tmp_path / "s", [tracker.port], server_id="100009"), PORT)
        assert own.storage_id == ("100009" if trust else "100002")


async def test_the_first_start(tmp_path: Path) -> None:
    async with running_tracker(tmp_path / "t") as tracker:
        async with running(storage_config(tmp_path / "s", [tracker.port])) as node:
            await joined(node)
            assert active(tracker)
            server = tracker.cluster.groups["group1"].servers[STORAGE_IP]
            assert (server.space, server.join_time) == (((5000, 2000),), 1000)
            assert node.founded == 1
            assert node.identity.sync_old_done
            assert node.membership.status is ServerStatus.ACTIVE
            assert [brief.storage_id for brief in node.membership.members] == [STORAGE_IP]
        await wait_for(lambda: not active(tracker))


async def test_a_restart_founds_nothing(tmp_path: Path) -> None:
    async with running_tracker(tmp_path / "t") as tracker:
        config = storage_config(tmp_path / "s", [tracker.port])
        async with running(config) as node:
            await joined(node)
        async with running(config) as node:
            await joined(node)
            assert node.founded == 0
            assert active(tracker)


async def test_a_tracker_that_lost_its_state_gets_the_storage_back(tmp_path: Path) -> None:
    config = storage_config(tmp_path / "s", [1])
    for name in ("t1", "t2"):
        async with running_tracker(tmp_path / name) as tracker:
            config = storage_config(tmp_path / "s", [tracker.port])
            async with running(config) as node:
                await joined(node)
                assert active(tracker)
                assert node.founded == (1 if name == "t1" else 0)


async def test_statistics_and_space_are_reported(tmp_path: Path) -> None:
    async with running_tracker(tmp_path / "t") as tracker:
        config = storage_config(
            tmp_path / "s", [tracker.port], heart_beat_interval_s=0.02, stat_report_interval_s=0.02
        )
        async with running(config) as node:
            await joined(node)
            node.statistics = Statistics(total_upload_count=42)
            node.space = [(7000, 6000)]
            server = tracker.cluster.groups["group1"].servers[STORAGE_IP]
            await wait_for(lambda: server.statistics.total_upload_count == 42)
            await wait_for(lambda: server.space == ((7000, 6000),))


async def test_the_changelog_of_the_group_is_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with running_tracker(tmp_path / "t") as tracker:
        config = storage_config(tmp_path / "s", [tracker.port], heart_beat_interval_s=0.02)
        async with running(config, await learn(config, PORT)) as node:
            await joined(node)
            with caplog.at_level("INFO"):
                tracker.cluster.changelog += b"1 group1 10.0.0.9 4 \n2 other 10.0.0.8 4 \n"
                await wait_for(lambda: "1 group1 10.0.0.9 4" in caplog.text)
            assert "10.0.0.8" not in caplog.text


# With a tracker that does what a test says --------------------------------------------------------

Answer = Callable[[int, bytes], "bytes | int | None"]
"""Takes a command and a body; returns a body, a status, or None to close the connection."""


class ScriptedTracker:
    """Answers on one port; can be stopped and started again. Remembers all requests."""

    def __init__(self) -> None:
        self.answer: Answer = self.good
        self.requests: list[tuple[int, bytes]] = []
        self.connections = 0
        self.port = 0
        self._scope: trio.CancelScope | None = None

    def good(self, command: int, body: bytes) -> bytes | int | None:
        """A tracker that knows this storage well."""
        answers: dict[int, bytes | int] = {
            60: STORAGE_IP.encode(),
            75: Parameters().encode(),
            81: Joined(ServerStatus.ONLINE, "").encode(),
            83: Changes().encode(),
            84: b"",
            141: errno.EINVAL,  # a stock tracker
        }
        return answers.get(command, b"")

    def commands(self) -> list[int]:
        return [command for command, _ in self.requests]

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        listeners = await trio.open_tcp_listeners(self.port, host=TRACKER_IP)
        self.port = listeners[0].socket.getsockname()[1]
        with trio.CancelScope() as self._scope:
            await trio.serve_listeners(self._serve, listeners, task_status=_Started(task_status))

    def stop(self) -> None:
        assert self._scope is not None
        self._scope.cancel()

    async def _serve(self, stream: trio.SocketStream) -> None:
        self.connections += 1
        async with stream:
            while len(head := await _read(stream, HEADER_SIZE)) == HEADER_SIZE:
                header = unpack_header(head)
                body = await _read(stream, header.length)
                self.requests.append((header.command, body))
                answer = self.answer(header.command, body)
                if answer is None:
                    return
                if isinstance(answer, int):
                    await stream.send_all(pack_response(status=answer))
                else:
                    await stream.send_all(pack_response(answer))


class _Started(trio.TaskStatus[Any]):
    """Hands on that listening has begun, without the listeners."""

    def __init__(self, status: trio.TaskStatus[None]) -> None:
        self._status = status

    def started(self, value: Any = None) -> None:
        self._status.started()


async def _read(stream: trio.SocketStream, count: int) -> bytes:
    data = b""
    while len(data) < count:
        try:
            chunk = await stream.receive_some(count - len(data))
        except trio.BrokenResourceError:
            break
        if not chunk:
            break
        data += chunk
    return data


@asynccontextmanager
async def scripted() -> AsyncIterator[tuple[ScriptedTracker, Callable[[], Awaitable[None]]]]:
    """A scripted tracker and a function that starts it (again)."""
    tracker = ScriptedTracker()
    async with trio.open_nursery() as nursery:

        async def start() -> None:
            await nursery.start(tracker.run)

        await start()
        yield tracker, start
        nursery.cancel_scope.cancel()


async def test_order_of_the_first_conversation(tmp_path: Path) -> None:
    async with scripted() as (tracker, _):
        config = storage_config(tmp_path, [tracker.port])
        place = await learn(config, PORT)
        assert tracker.commands() == [60, 75]
        async with running(config, place) as node:
            await joined(node)
            assert tracker.commands()[2:] == [81, 87, 141, 88, 84, 83]
        first = Join.decode(tracker.requests[2][1])
        assert (first.init_flag, first.status, first.port) == (True, 0, PORT)
        assert (first.tracker_ip, first.trackers) == (TRACKER_IP, (f"{TRACKER_IP}:{tracker.port}",))
        assert (first.version, first.join_time, first.store_path_count) == ("6.16.1", 1000, 1)
        tracker.requests.clear()
        async with running(config, place) as node:
            await joined(node)
            assert tracker.commands() == [81, 88, 84, 83]
        assert not Join.decode(tracker.requests[0][1]).init_flag


async def test_heartbeats_have_a_body_only_when_something_changed(tmp_path: Path) -> None:
    async with scripted() as (tracker, _):
        config = storage_config(tmp_path, [tracker.port], heart_beat_interval_s=0.01)

        def beats() -> list[bytes]:
            return [body for command, body in tracker.requests if command == 83]

        async with running(config) as node:
            await wait_for(lambda: len(beats()) >= 3)
            assert len(beats()[0]) == 348
            assert beats()[1:3] == [b"", b""]
            seen = len(beats())
            node.statistics = Statistics(total_delete_count=1)
            await wait_for(lambda: any(beats()[seen:]))


async def test_a_source_is_remembered_and_notified(tmp_path: Path) -> None:
    source = SyncSource("10.0.0.5", 123)
    async with scripted() as (tracker, _):
        tracker.answer = lambda command, body: (
            source.encode() if command == 87 else tracker.good(command, body)
        )
        config = storage_config(tmp_path, [tracker.port])
        for first in (True, False):
            tracker.requests.clear()
            async with running(config) as node:
                await joined(node)
                assert node.founded == 0
            assert (87 in tracker.commands()) is first
            assert (88, source.encode()) in tracker.requests
        assert Identity.load(tmp_path, 1).source == source


async def test_no_source_yet(tmp_path: Path) -> None:
    async with scripted() as (tracker, _):
        tracker.answer = lambda command, body: (
            errno.ENOENT if command == 87 else tracker.good(command, body)
        )
        async with running(storage_config(tmp_path, [tracker.port])) as node:
            await wait_for(lambda: tracker.commands().count(87) >= 2)
            assert not node.identity.sync_old_done
            assert 88 not in tracker.commands()
            tracker.answer = tracker.good
            await joined(node)
            assert node.identity.sync_old_done


async def test_a_tracker_that_goes_is_joined_again_when_it_comes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with scripted() as (tracker, start):
        config = storage_config(tmp_path, [tracker.port])
        async with running(config) as node:
            await joined(node)
            caplog.set_level("INFO")
            for outage in (1, 2):
                tracker.requests.clear()
                tracker.stop()
                await wait_for(lambda: caplog.text.count("cannot connect") == outage)  # noqa: B023
                await start()
                await wait_for(lambda: 83 in tracker.commands())
                assert tracker.commands()[0] == 81
                assert caplog.text.count("again after") == outage
    # The end of the connection and the refused ones: each reason is told once per outage.
    assert len([r for r in caplog.records if r.levelname == "WARNING"]) == 4


async def test_a_refused_join_is_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with scripted() as (tracker, _):
        tracker.answer = lambda command, body: errno.EINVAL
        async with running(storage_config(tmp_path, [tracker.port])) as node:
            await wait_for(lambda: tracker.commands().count(81) >= 3)
            tracker.answer = tracker.good
            await joined(node)
        assert len([r for r in caplog.records if r.levelname == "WARNING"]) == 1


@pytest.mark.parametrize("bad", [b"x", b"\x07" + bytes(66), b"\xff" * 68, None])
@pytest.mark.parametrize("command", [81, 83, 87])
async def test_garbage_from_a_tracker_ends_that_connection_only(
    tmp_path: Path, command: int, bad: bytes | None
) -> None:
    async with scripted() as (tracker, _):
        tracker.answer = lambda got, body: bad if got == command else tracker.good(got, body)
        async with running(storage_config(tmp_path, [tracker.port])) as node:
            await wait_for(lambda: tracker.connections >= 2)
            tracker.answer = tracker.good
            await joined(node)


async def test_a_tracker_that_does_not_answer(tmp_path: Path) -> None:
    answered = trio.Event()

    async with scripted() as (tracker, _):
        config = storage_config(tmp_path, [tracker.port], network_timeout_s=0.1)
        tracker.answer = tracker.good
        real = tracker.good

        def silent_once(command: int, body: bytes) -> bytes | int | None:
            if command == 83 and not answered.is_set():
                answered.set()
                return pack_response(bytes(10))[:5]  # announces what never comes
            return real(command, body)

        tracker.answer = silent_once
        async with running(config) as node:
            await joined(node)
            assert tracker.connections >= 2


async def test_learning_goes_on_until_a_tracker_answers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with scripted() as (tracker, start):
        tracker.stop()
        config = storage_config(tmp_path, [tracker.port])
        async with trio.open_nursery() as nursery:
            found: list[Place] = []

            async def ask() -> None:
                found.append(await learn(config, PORT))

            nursery.start_soon(ask)
            await wait_for(lambda: "waiting for a tracker" in caplog.text)
            tracker.answer = lambda command, body: b"not an ip" if command == 60 else 22
            await start()
            await wait_for(lambda: tracker.connections > 1)
            assert not found
            tracker.answer = tracker.good
        assert found == [PLACE]
        assert len([r for r in caplog.records if r.levelname == "WARNING"]) == 1


async def test_two_trackers_and_one_of_them_is_down(tmp_path: Path) -> None:
    async with scripted() as (first, _), scripted() as (second, start_second):
        second.stop()
        config = storage_config(tmp_path, [second.port, first.port])
        place = await learn(config, PORT)
        async with running(config, place) as node:
            await joined(node)
            join = Join.decode(next(body for command, body in first.requests if command == 81))
            assert join.status == -1, "not all have told a status yet"
            assert len(join.trackers) == 2
            await start_second()
            await wait_for(lambda: 83 in second.commands())
            assert 87 not in second.commands(), "decided once for all trackers"
            late = Join.decode(next(body for command, body in second.requests if command == 81))
            assert (late.status, late.init_flag) == (int(ServerStatus.ONLINE), False)


# The group, and what replication asks ------------------------------------------------------------


def member(host: int, status: ServerStatus = ServerStatus.ACTIVE) -> Brief:
    return Brief(status, PORT, f"127.0.0.{host}", f"127.0.0.{host}")


class Telling:
    """Makes a scripted tracker answer heartbeats with what a test sets."""

    def __init__(self, tracker: ScriptedTracker) -> None:
        self.changes = Changes()
        self.answers: dict[int, bytes | int] = {}
        self._good = tracker.good
        tracker.answer = self._answer

    def _answer(self, command: int, body: bytes) -> bytes | int | None:
        if command in (83, 84, 89):
            changes, self.changes = self.changes, Changes()
            return changes.encode()
        return self.answers.get(command, self._good(command, body))


async def test_the_list_of_the_group_is_merged_and_observed(tmp_path: Path) -> None:
    async with scripted() as (tracker, _):
        telling = Telling(tracker)
        config = storage_config(tmp_path, [tracker.port], heart_beat_interval_s=0.02)
        own, peer = member(21), member(22)
        telling.changes = Changes(
            leader=Brief(ServerStatus.INIT, tracker.port, TRACKER_IP, TRACKER_IP),
            group=(own, peer, member(23, ServerStatus.DELETED)),
        )
        async with running(config) as node:
            seen: list[tuple[Brief, ...]] = []
            membership = node.membership
            membership.add_observer(lambda: seen.append(membership.members))
            await joined(node)
            await wait_for(lambda: membership.members == (own, peer))
            assert seen[-1] == (own, peer)
            assert membership.leader == config.tracker_servers[0]
            # A list that lacks a member does not remove it: the tracker is told of it.
            telling.changes = Changes(group=(own,))
            await wait_for(lambda: (85, peer.encode()) in tracker.requests)
            assert membership.members == (own, peer)


async def test_a_removed_peer_is_dropped_once_its_changelog_was_read(tmp_path: Path) -> None:
    async with scripted() as (tracker, _):
        telling = Telling(tracker)
        config = storage_config(tmp_path, [tracker.port], heart_beat_interval_s=0.02)
        telling.changes = Changes(group=(member(21), member(22)))
        lines: list[ChangelogLine] = []
        async with running(config) as node:
            node.membership.on_changelog = lines.append
            await wait_for(lambda: len(node.membership.members) == 2)
            line = ChangelogLine(5, "group1", "127.0.0.22", ServerStatus.DELETED)
            telling.answers[77] = b"1 other 127.0.0.22 4 \nno line\n" + line.encode()
            telling.changes = Changes(group=(member(21), member(22, ServerStatus.DELETED)))
            await wait_for(lambda: len(node.membership.members) == 1)
            assert lines
            assert set(lines) == {line}
            telling.changes = Changes(group=(member(21), member(22, ServerStatus.INIT)))
            await wait_for(lambda: len(node.membership.members) == 2)


async def test_what_replication_asks_and_reports(tmp_path: Path) -> None:
    async with scripted() as (first, _), scripted() as (second, _):
        config = storage_config(tmp_path, [first.port, second.port], heart_beat_interval_s=0.02)
        Telling(first).changes = Changes(group=(member(21), member(22, ServerStatus.WAIT_SYNC)))
        source = SyncSource(STORAGE_IP, 77)
        telling = Telling(second)
        telling.changes = Changes(
            leader=Brief(ServerStatus.INIT, second.port, TRACKER_IP, TRACKER_IP)
        )
        telling.answers[86] = source.encode()
        async with running(config) as node:
            membership = node.membership
            membership.sync_timestamps = lambda: {"127.0.0.22": 1234}
            await wait_for(lambda: len(membership.members) == 2 and membership.leader is not None)
            assert await membership.sync_source("127.0.0.22") == source
            assert 86 not in first.commands(), "the leader is asked"
            telling.answers[86] = b""
            assert await membership.sync_source("127.0.0.22") is None
            telling.answers[86] = errno.ENOENT
            with pytest.raises(StatusError):
                await membership.sync_source("127.0.0.22")
            await membership.report_status(member(22, ServerStatus.SYNCING))
            assert membership.members[1].status is ServerStatus.SYNCING
            assert 76 in first.commands()
            assert 76 in second.commands()
            second.stop()
            await membership.report_status(member(22, ServerStatus.OFFLINE))
            first.answer = lambda command, body: errno.ENOENT
            with pytest.raises((StatusError, ConnectionProblem)):
                await membership.report_status(member(22, ServerStatus.OFFLINE))
            times = SyncReport((("127.0.0.21", 0), ("127.0.0.22", 1234))).encode()
            assert (89, times) in first.requests


async def test_a_tracker_that_knows_an_old_status_is_told_the_leaders(tmp_path: Path) -> None:
    async with scripted() as (leader, _), scripted() as (follower, _):
        stale = member(21, ServerStatus.WAIT_SYNC)
        behind = Telling(follower)
        behind.answers = {81: Joined(stale.status, "").encode(), 71: stale.encode()}
        ahead = Telling(leader)
        ahead.answers = {71: member(21).encode()}
        ahead.changes = Changes(
            leader=Brief(ServerStatus.INIT, leader.port, TRACKER_IP, TRACKER_IP),
            group=(member(21),),
        )
        config = storage_config(tmp_path, [follower.port, leader.port], heart_beat_interval_s=0.02)
        async with running(config) as node:
            await wait_for(lambda: (59, b"\x07") in follower.requests)
            behind.answers = {}
            await wait_for(lambda: follower.commands().count(81) >= 2)
            assert node.membership.status is ServerStatus.ACTIVE
            assert 59 not in leader.commands()


async def test_a_changed_ip_is_told_before_joining(tmp_path: Path) -> None:
    async with scripted() as (tracker, _):
        config = storage_config(tmp_path, [tracker.port])
        identity = Identity.load(tmp_path, 1000)
        identity.last_ip_addr = "10.0.0.7"
        identity.save()
        place = Place(Parameters(storage_ip_changed_auto_adjust=True), STORAGE_IP, STORAGE_IP)
        async with running(config, place) as node:
            await joined(node)
            assert tracker.commands()[:3] == [78, 77, 81]
            assert tracker.requests[0][1] == IpChange("group1", "10.0.0.7", STORAGE_IP).encode()
        assert Identity.load(tmp_path, 1).last_ip_addr == STORAGE_IP


async def test_a_storage_that_is_not_the_founder_founds_no_tree(tmp_path: Path) -> None:
    async with scripted() as (tracker, _):
        telling = Telling(tracker)
        telling.answers[141] = encode(FounderAnswer(False, "it has lost what it had"))
        async with running(storage_config(tmp_path, [tracker.port])) as node:
            await joined(node)
            assert node.founded == 0
            assert node.identity.sync_old_done
        (query,) = (body for command, body in tracker.requests if command == 141)
        assert decode(FounderQuery, query) == FounderQuery("group1", STORAGE_IP, 1000)


async def test_trackers_that_are_configured_by_name_are_listed_by_address(tmp_path: Path) -> None:
    async with scripted() as (tracker, _):
        config = storage_config(
            tmp_path,
            [],
            tracker_servers=(
                ServerAddress((TRACKER_IP,), tracker.port),
                ServerAddress(("localhost",), 1),
                ServerAddress(("no.such.host.invalid",), 2),
            ),
        )
        async with running(config) as node:
            await joined(node)
        join = Join.decode(next(body for command, body in tracker.requests if command == 81))
        assert join.trackers[0] == f"{TRACKER_IP}:{tracker.port}"
        assert join.trackers[1] in ("127.0.0.1:1", "[::1]:1")
        assert len(join.trackers) == 2


async def test_a_source_that_was_removed_is_asked_for_again(tmp_path: Path) -> None:
    async with scripted() as (tracker, _):
        telling = Telling(tracker)
        telling.answers = {
            87: SyncSource("10.0.0.5", 123).encode(),
            81: Joined(ServerStatus.WAIT_SYNC, "").encode(),
            71: member(21, ServerStatus.WAIT_SYNC).encode(),
            88: errno.ENOENT,
        }
        async with running(storage_config(tmp_path, [tracker.port])) as node:
            await wait_for(lambda: 79 in tracker.commands())
            telling.answers |= {87: SyncSource("10.0.0.6", 456).encode(), 88: b""}
            await joined(node)
            assert node.identity.source == SyncSource("10.0.0.6", 456)
            assert node.founded == 0
