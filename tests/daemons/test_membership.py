"""A storage joins trackers, stays joined and comes back: against trackers of ours and by script."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import trio

from fdfs_storage.cluster.identity import Identity
from fdfs_storage.cluster.place import Place, learn
from fdfsfuse.core.config import IdType
from fdfsfuse.core.storage_ids import StorageIds
from fdfsfuse.proto.cluster import Brief, Join, SyncSource
from fdfsfuse.proto.header import pack_response
from fdfsfuse.proto.statistics import Statistics
from fdfsfuse.proto.tracker import ServerStatus
from tests.common.waiting import wait_for
from tests.daemons.membership_node import (
    PLACE,
    PORT,
    STORAGE_IP,
    active,
    joined,
    running,
    scripted,
    storage_config,
)
from tests.daemons.tracker_server import TRACKER_IP, running_tracker

# With a tracker of ours ---------------------------------------------------------------------------


async def test_learning_the_own_place(tmp_path: Path) -> None:
    async with running_tracker(tmp_path / "t") as tracker:
        place = await learn(storage_config(tmp_path / "s", [tracker.port]), PORT)
        assert (place.my_ip, place.storage_id, place.source_in_names) == (STORAGE_IP,) * 3
        assert place.parameters.reserved_storage_space == "1024MB"


async def test_learning_the_group(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Without group_name in storage.conf it is that of the table of storage ids (109)."""
    table = StorageIds.parse(f"100001 group7 {STORAGE_IP}:{PORT}", "ids")
    async with running_tracker(tmp_path / "t", storage_ids=table) as tracker:
        place = await learn(storage_config(tmp_path, [tracker.port], group_name=""), PORT)
        assert (place.group_name, place.storage_id) == ("group7", "100001")
    async with running_tracker(tmp_path / "u") as tracker, trio.open_nursery() as nursery:
        nursery.start_soon(learn, storage_config(tmp_path, [tracker.port], group_name=""), PORT)
        await wait_for(lambda: "no group_name" in caplog.text)
        nursery.cancel_scope.cancel()


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


async def test_a_tracker_that_hangs_holds_up_no_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fdfs_storage.cluster.place._TURN_S", 0.01)
    monkeypatch.setattr("fdfs_storage.cluster.tracker_link._GRACE_S", 0.01)
    (silent,) = await trio.open_tcp_listeners(0, host=TRACKER_IP)
    async with silent, running_tracker(tmp_path / "t") as tracker:
        config = storage_config(tmp_path / "s", [tracker.port])
        async with running(config, await learn(config, PORT)) as node:
            await joined(node)
        ports = [silent.socket.getsockname()[1], tracker.port]
        config = storage_config(tmp_path / "s", ports, network_timeout_s=3600.0)
        with trio.fail_after(60):
            # Not the first start: it asks for the changelog, too.
            async with running(config, await learn(config, PORT)) as node:
                await joined(node)
                await node.membership.report_status(Brief(ServerStatus.ONLINE, 1, "9", "9"))


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
