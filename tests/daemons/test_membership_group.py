"""What a storage knows of its group by several trackers, and what replication asks of them."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from fdfs_storage.cluster.identity import Identity
from fdfs_storage.cluster.place import Place
from fdfsfuse.core.conf_file import ServerAddress
from fdfsfuse.errors import ConnectionProblem, StatusError
from fdfsfuse.proto import structs
from fdfsfuse.proto.changelog import ChangelogLine, IpChange
from fdfsfuse.proto.cluster import Brief, Changes, Join, Joined, SyncReport, SyncSource
from fdfsfuse.proto.cluster_status import FounderAnswer, FounderQuery
from fdfsfuse.proto.parameters import Parameters
from fdfsfuse.proto.tracker import ServerStatus
from tests.common.waiting import wait_for
from tests.daemons.membership_node import (
    STORAGE_IP,
    Telling,
    joined,
    member,
    running,
    scripted,
    storage_config,
)
from tests.daemons.tracker_server import TRACKER_IP


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


async def test_a_peer_that_was_forgotten_before_any_list_told_its_removal(tmp_path: Path) -> None:
    async with scripted() as (tracker, _):
        telling = Telling(tracker)
        config = storage_config(tmp_path, [tracker.port], heart_beat_interval_s=0.02)
        telling.changes = Changes(group=(member(21), member(22)))
        place = Place(Parameters(storage_ip_changed_auto_adjust=True), STORAGE_IP, STORAGE_IP)
        async with running(config, place) as node:
            lines: list[ChangelogLine] = []
            node.membership.on_changelog = lines.append
            await wait_for(lambda: len(node.membership.members) == 2)
            line = ChangelogLine(5, "group1", "127.0.0.22", ServerStatus.DELETED)
            telling.changes = Changes(group=(member(21),))
            telling.answers[77] = line.encode()
            await wait_for(lambda: len(node.membership.members) == 1)
            assert set(lines) == {line}


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
        telling.answers[141] = structs.encode(FounderAnswer(False, "it has lost what it had"))
        async with running(storage_config(tmp_path, [tracker.port])) as node:
            await joined(node)
            assert node.founded == 0
            assert node.identity.sync_old_done
        (query,) = (body for command, body in tracker.requests if command == 141)
        assert structs.decode(FounderQuery, query) == FounderQuery("group1", STORAGE_IP, 1000)


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


async def test_it_says_that_it_cannot_be_the_trunk_server(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with scripted() as (tracker, _):
        telling = Telling(tracker)
        config = storage_config(tmp_path, [tracker.port], heart_beat_interval_s=0.02)
        telling.changes = Changes(trunk_server=member(22), group=(member(21), member(22)))
        async with running(config) as node:
            await wait_for(lambda: len(node.membership.members) == 2)
            assert "trunk server" not in caplog.text
            telling.changes = Changes(trunk_server=member(21))
            await wait_for(lambda: "chosen this storage as trunk server" in caplog.text)


async def test_a_tree_is_not_founded_against_the_trackers(tmp_path: Path) -> None:
    """Although an administrator wants it, another storage may have one."""
    async with scripted() as (first, _), scripted() as (second, _):
        config = storage_config(tmp_path, [first.port, second.port])
        telling = Telling(second)
        telling.changes = Changes(group=(member(21),))
        async with running(config) as node:
            await joined(node)
            await wait_for(lambda: len(node.membership.members) == 1)
            founded = node.founded
            for answer, status in (
                (structs.encode(FounderAnswer(False, "another one founded it")), errno.EBUSY),
                (errno.EAGAIN, errno.EAGAIN),
            ):
                telling.answers[141] = answer
                with pytest.raises(StatusError) as caught:
                    await node.found_tree("127.0.0.9")
                assert caught.value.errno == status
            query = [body for command, body in second.requests if command == 141][-1]
            assert structs.decode(FounderQuery, query).stock == ["127.0.0.9"]
            assert node.founded == founded


@pytest.mark.parametrize(
    ("source", "status"),
    [
        (SyncSource(STORAGE_IP, 99), ServerStatus.WAIT_SYNC),
        (SyncSource(STORAGE_IP, 50), ServerStatus.ACTIVE),  # that copy was made: an old opinion
        (SyncSource("127.0.0.23", 99), ServerStatus.ACTIVE),
    ],
)
async def test_a_member_that_came_back_empty_between_two_heartbeats(
    tmp_path: Path, source: SyncSource, status: ServerStatus
) -> None:
    """Lists of a C tracker go from ACTIVE to WAIT_SYNC then, which is not believed (3.3)."""
    async with scripted() as (tracker, _):
        telling = Telling(tracker)
        config = storage_config(tmp_path, [tracker.port], heart_beat_interval_s=0.02)
        telling.changes = Changes(group=(member(21), member(22)))
        async with running(config) as node:
            node.membership.copied_until = lambda peer_id: 50 if peer_id == "127.0.0.22" else None
            await wait_for(lambda: len(node.membership.members) == 2)
            telling.answers[86] = errno.ENOENT
            telling.changes = Changes(group=(member(21), member(22, ServerStatus.WAIT_SYNC)))
            await wait_for(lambda: tracker.commands().count(86) > 1)
            assert node.membership.members[1].status is ServerStatus.ACTIVE
            telling.answers[86] = source.encode()
            if status is ServerStatus.WAIT_SYNC:
                await wait_for(lambda: node.membership.members[1].status is status)
            asked = tracker.commands().count(86)
            await wait_for(lambda: tracker.commands()[-3:].count(83) > 1)
            assert node.membership.members[1].status is status
            assert tracker.commands().count(86) <= asked + 1


@pytest.mark.parametrize(
    ("answer", "status"),
    [(errno.EINVAL, 0), (errno.ENOENT, 0), (b"a view", errno.EBUSY), (None, errno.EBUSY)],
)
@pytest.mark.parametrize("stock_trackers", [True, False])
async def test_the_members_are_asked_for_a_tree_before_one_is_founded(
    tmp_path: Path, answer: bytes | int | None, status: int, stock_trackers: bool
) -> None:
    """Stock trackers do not know of trees, and ours may have lost what they knew."""
    async with scripted() as (tracker, _), scripted() as (peer, _):
        telling = Telling(tracker)
        config = storage_config(tmp_path, [tracker.port], heart_beat_interval_s=0.02)
        other = Brief(ServerStatus.ACTIVE, peer.port, "127.0.0.22", TRACKER_IP)
        peer.answer = lambda command, body: answer
        if not stock_trackers:
            telling.answers[141] = structs.encode(FounderAnswer(True))
        async with running(config) as node:
            await joined(node)
            with pytest.raises(StatusError) as caught:
                await node.found_tree()
            assert caught.value.errno == errno.EAGAIN, "it does not know the members yet"
            telling.changes = Changes(group=(member(21), other))
            await wait_for(lambda: len(node.membership.members) == 2)
            node.identity.sync_old_done = False  # as the node's own check wants it
            founded = node.founded
            try:
                await node.found_tree()
                found = 0
            except StatusError as exc:
                found = exc.errno or 0
            assert found == status
            assert node.founded == founded + (status == 0)
