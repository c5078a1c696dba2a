"""The group as a storage knows it: the table of protocol/cluster.md section 3.3, line by line."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fdfsfuse.core.members import contradicts, forget, merge
from fdfsfuse.proto.cluster import Brief
from fdfsfuse.proto.tracker import ServerStatus as S

OWN = "10.0.0.1"
PEER = "10.0.0.2"


def brief(status: S, storage_id: str = PEER, port: int = 23000) -> Brief:
    return Brief(status, port, storage_id, storage_id)


@pytest.mark.parametrize("told", [s for s in S if s not in (S.DELETED, S.IP_CHANGED, S.NONE)])
def test_a_new_server_is_added(told: S) -> None:
    merged = merge({}, [brief(told)], OWN)
    assert merged.members == {PEER: brief(told)}
    assert (merged.differences, merged.gone, merged.rejoin) == ((), (), False)


@pytest.mark.parametrize("told", [S.DELETED, S.IP_CHANGED])
def test_an_unknown_server_that_is_gone_is_ignored(told: S) -> None:
    assert merge({}, [brief(told)], OWN).members == {}


@pytest.mark.parametrize(
    ("known", "told", "result", "differs"),
    [
        (S.ACTIVE, S.ACTIVE, S.ACTIVE, False),
        (S.ACTIVE, S.OFFLINE, S.OFFLINE, False),
        (S.ONLINE, S.OFFLINE, S.OFFLINE, False),
        (S.SYNCING, S.OFFLINE, S.SYNCING, True),
        (S.WAIT_SYNC, S.OFFLINE, S.WAIT_SYNC, True),
        (S.RECOVERY, S.OFFLINE, S.RECOVERY, True),
        (S.INIT, S.OFFLINE, S.OFFLINE, False),
        (S.NONE, S.OFFLINE, S.OFFLINE, False),
        (S.OFFLINE, S.ACTIVE, S.ACTIVE, False),
        (S.OFFLINE, S.DELETED, S.DELETED, False),
        (S.NONE, S.INIT, S.INIT, False),
        (S.NONE, S.WAIT_SYNC, S.WAIT_SYNC, False),
        (S.NONE, S.DELETED, S.NONE, False),
        (S.ACTIVE, S.WAIT_SYNC, S.ACTIVE, True),
        (S.ONLINE, S.SYNCING, S.ONLINE, True),
        (S.SYNCING, S.WAIT_SYNC, S.SYNCING, True),
        (S.WAIT_SYNC, S.SYNCING, S.SYNCING, False),
        (S.DELETED, S.WAIT_SYNC, S.WAIT_SYNC, False),
        (S.INIT, S.WAIT_SYNC, S.WAIT_SYNC, False),
        (S.SYNCING, S.ACTIVE, S.ACTIVE, False),
        (S.ACTIVE, S.IP_CHANGED, S.IP_CHANGED, False),
        (S.ACTIVE, S.RECOVERY, S.RECOVERY, False),
    ],
)
def test_a_known_server(known: S, told: S, result: S, differs: bool) -> None:
    merged = merge({PEER: brief(known)}, [brief(told)], OWN)
    assert merged.members[PEER].status is result
    assert merged.differences == ((brief(known),) if differs else ())
    removed = result in (S.DELETED, S.IP_CHANGED) and known is not result
    assert merged.gone == ((PEER,) if removed else ())
    assert not merged.rejoin


def test_it_joins_again_when_a_tracker_thinks_it_is_still_being_filled() -> None:
    merged = merge({OWN: brief(S.ACTIVE, OWN)}, [brief(S.WAIT_SYNC, OWN)], OWN)
    assert merged.rejoin
    assert merged.members[OWN].status is S.ACTIVE


def test_servers_that_the_list_lacks_are_differences() -> None:
    known = {PEER: brief(S.ACTIVE), "x": brief(S.NONE, "x")}
    merged = merge(known, [brief(S.ACTIVE, OWN)], OWN)
    assert merged.differences == (brief(S.ACTIVE),)
    assert set(merged.members) == {OWN, PEER, "x"}


def test_a_changed_port_is_taken_over() -> None:
    moved = brief(S.ACTIVE, port=23001)
    assert merge({PEER: brief(S.ACTIVE)}, [moved], OWN).members[PEER] == moved


def test_a_removed_server_is_forgotten_and_can_come_back() -> None:
    known = merge({PEER: brief(S.OFFLINE)}, [brief(S.DELETED)], OWN).members
    known = forget(known, PEER)
    assert known[PEER].status is S.NONE
    known = merge(known, [brief(S.DELETED)], OWN).members
    assert known[PEER].status is S.NONE
    assert merge(known, [brief(S.INIT)], OWN).members[PEER].status is S.INIT
    assert forget({PEER: brief(S.ACTIVE)}, PEER)[PEER].status is S.ACTIVE
    assert forget({}, PEER) == {}


@given(st.lists(st.sampled_from(S)), st.sampled_from(S))
def test_the_same_list_twice_changes_nothing(history: list[S], last: S) -> None:
    known = merge({}, [brief(status) for status in history], OWN).members
    once = merge(known, [brief(last)], OWN)
    again = merge(once.members, [brief(last)], OWN)
    assert again.members == once.members
    assert again.gone == ()


@pytest.mark.parametrize(
    ("told", "at_leader", "result"),
    [
        (S.ACTIVE, S.ACTIVE, False),
        (S.OFFLINE, S.ACTIVE, False),
        (S.ONLINE, S.OFFLINE, False),
        (S.WAIT_SYNC, S.ACTIVE, True),
        (S.ACTIVE, S.SYNCING, True),
        (S.INIT, S.WAIT_SYNC, True),
    ],
)
def test_when_a_tracker_is_told_the_status_at_the_leader(
    told: S, at_leader: S, result: bool
) -> None:
    assert contradicts(told, at_leader) is result
