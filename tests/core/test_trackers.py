"""The list of trackers and the election of a leader: protocol/cluster.md section 6."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fdfsfuse.core.conf_file import ServerAddress
from fdfsfuse.core.trackers import Decision, Leadership, TrackerList, best, decide
from fdfsfuse.errors import ProtocolError, StatusError
from fdfsfuse.proto.tracker_peers import TrackerStatus

OWN = ServerAddress(("10.0.0.1",), 22122)
SECOND = ServerAddress(("10.0.0.2",), 22122)
THIRD = ServerAddress(("10.0.0.3",), 22122)
LINES = tuple(map(str, (OWN, SECOND, THIRD)))


def tracker_list() -> TrackerList:
    trackers = TrackerList(22122)
    trackers.learn(LINES, "10.0.0.1")
    return trackers


def test_a_join_tells_the_other_trackers() -> None:
    trackers = tracker_list()
    assert (trackers.own, trackers.others) == (OWN, (SECOND, THIRD))
    assert trackers.find("10.0.0.3", 22122) == THIRD
    assert trackers.find("10.0.0.3", 22123) is None
    trackers.learn(("10.0.0.1:22122", "10.0.0.4:22122"), "10.0.0.1")
    assert len(trackers.servers) == 4, "a later list only adds"


def test_it_knows_itself_by_a_second_address() -> None:
    trackers = TrackerList(22122, ("192.168.0.1",))
    trackers.learn(("10.0.0.1,192.168.0.1:22122", *LINES[1:]), "192.168.0.1")
    assert trackers.own == ServerAddress(("10.0.0.1", "192.168.0.1"), 22122)
    assert trackers.others == (SECOND, THIRD)


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        (LINES[1:], errno.ENOENT),
        (("10.0.0.1:22123",), errno.ENOENT),
        ((*LINES, *(f"10.0.1.{n}:22122" for n in range(14))), errno.ENOSPC),
    ],
)
def test_lists_that_are_refused(lines: tuple[str, ...], status: int) -> None:
    trackers = TrackerList(22122)
    with pytest.raises(StatusError) as caught:
        trackers.learn(lines, "10.0.0.1")
    assert caught.value.errno == status
    assert trackers.servers == ()
    assert trackers.own is None


def test_a_malformed_list_is_refused() -> None:
    with pytest.raises(ProtocolError):
        TrackerList(22122).learn(("10.0.0.1:x",), "10.0.0.1")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (TrackerStatus(False, 900, 0), TrackerStatus(True, 0, 600)),
        (TrackerStatus(False, 300, 0), TrackerStatus(False, 600, 600)),
        (TrackerStatus(False, 300, 600), TrackerStatus(False, 300, 300)),
        (TrackerStatus(False, 300, 300), TrackerStatus(False, 300, 300)),
    ],
)
def test_rank_is_leader_then_running_then_restart_then_address(
    first: TrackerStatus, second: TrackerStatus
) -> None:
    assert best({OWN: first, SECOND: second}) == SECOND
    assert best({}) is None


def test_what_a_tracker_without_a_leader_does() -> None:
    idle, leads = TrackerStatus(False, 0, 0), TrackerStatus(True, 0, 0)
    assert decide(OWN, {OWN: idle}) == (Decision.ANNOUNCE, OWN)
    assert decide(OWN, {OWN: idle, SECOND: idle}) == (Decision.WAIT, SECOND)
    assert decide(OWN, {OWN: idle, SECOND: leads, THIRD: idle}) == (Decision.ADOPT, SECOND)
    assert decide(THIRD, {OWN: idle, SECOND: idle, THIRD: idle}) == (Decision.ANNOUNCE, THIRD)


statuses = st.builds(
    TrackerStatus, st.just(False), st.sampled_from([0, 300, 600]), st.sampled_from([0, 300])
)


@given(st.dictionaries(st.sampled_from([OWN, SECOND, THIRD]), statuses, min_size=1))
def test_all_that_see_the_same_agree_on_one(found: dict[ServerAddress, TrackerStatus]) -> None:
    decisions = {own: decide(own, found) for own in found}
    winners = {winner for _, winner in decisions.values()}
    announcing = [own for own, (what, _) in decisions.items() if what is Decision.ANNOUNCE]
    assert len(winners) == 1
    assert announcing == list(winners)


def leadership() -> Leadership:
    return Leadership(tracker_list())


def test_notify_then_commit() -> None:
    state = leadership()
    changed: list[int] = []
    state.on_change = lambda: changed.append(state.changes)
    with pytest.raises(ProtocolError):
        state.commit("10.0.0.2", 22122)
    state.notify("10.0.0.2", 22122)
    with pytest.raises(ProtocolError):
        state.commit("10.0.0.3", 22122)
    assert not changed
    state.commit("10.0.0.2", 22122)
    assert state.leader == SECOND
    assert changed == [1]
    with pytest.raises(ProtocolError):
        state.commit("10.0.0.2", 22122)
    for ask in (state.notify, state.commit):
        with pytest.raises(StatusError) as caught:
            ask("10.0.0.9", 22122)
        assert caught.value.errno == errno.ENOENT


def test_a_leader_steps_down_when_another_is_announced() -> None:
    state = leadership()
    state.adopt(OWN)
    assert state.leads
    with pytest.raises(ProtocolError):
        state.notify("10.0.0.2", 22122)
    assert state.leader is None


def test_reselect() -> None:
    state = leadership()
    with pytest.raises(StatusError) as caught:
        state.reselect()
    assert caught.value.errno == errno.EOPNOTSUPP
    state.adopt(OWN)
    state.reselect()
    assert not state.leads
