"""The status of a storage: the transitions of protocol/cluster.md section 4.1."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fdfsfuse.core.states import AVAILABLE, Event, after, merge_report, override
from fdfsfuse.proto.tracker import ServerStatus as S


@pytest.mark.parametrize(
    ("status", "event", "result"),
    [
        (S.INIT, Event.NOTHING_TO_COPY, S.ONLINE),
        (S.INIT, Event.NOTIFIED_NO_SOURCE, S.ONLINE),
        (S.INIT, Event.SOURCE_CHOSEN, S.WAIT_SYNC),
        (S.INIT, Event.NOTIFIED_SOURCE, S.WAIT_SYNC),
        (S.OFFLINE, Event.REPORTED, S.ACTIVE),
        (S.ONLINE, Event.REPORTED, S.ACTIVE),
        (S.INIT, Event.REPORTED, S.INIT),
        (S.WAIT_SYNC, Event.REPORTED, S.WAIT_SYNC),
        (S.SYNCING, Event.REPORTED, S.SYNCING),
        (S.IP_CHANGED, Event.REPORTED, S.IP_CHANGED),
        (S.DELETED, Event.REPORTED, S.DELETED),
        (S.OFFLINE, Event.JOINED, S.ONLINE),
        (S.RECOVERY, Event.JOINED, S.ONLINE),
        (S.DELETED, Event.JOINED, S.INIT),
        (S.IP_CHANGED, Event.JOINED, S.INIT),
        (S.ACTIVE, Event.JOINED, S.ACTIVE),
        (S.OFFLINE, Event.JOINED_WITHOUT_DATA, S.INIT),
        (S.RECOVERY, Event.JOINED_WITHOUT_DATA, S.INIT),
        (S.DELETED, Event.JOINED_WITHOUT_DATA, S.INIT),
        (S.WAIT_SYNC, Event.JOINED_WITHOUT_DATA, S.WAIT_SYNC),
        (S.ONLINE, Event.DISCONNECTED, S.OFFLINE),
        (S.ACTIVE, Event.DISCONNECTED, S.OFFLINE),
        (S.ACTIVE, Event.SILENT, S.OFFLINE),
        (S.ONLINE, Event.SILENT, S.ONLINE),
        (S.OFFLINE, Event.REMOVED, S.DELETED),
        (S.ONLINE, Event.REMOVED, S.ONLINE),
        (S.ACTIVE, Event.REMOVED, S.ACTIVE),
        (S.RECOVERY, Event.REMOVED, S.RECOVERY),
        (S.WAIT_SYNC, Event.NOTIFIED_NO_SOURCE, S.ONLINE),
        (S.ACTIVE, Event.NOTIFIED_NO_SOURCE, S.ACTIVE),
    ],
)
def test_transitions(status: S, event: Event, result: S) -> None:
    assert after(status, event) is result


@pytest.mark.parametrize(
    "status", [S.INIT, S.WAIT_SYNC, S.SYNCING, S.DELETED, S.IP_CHANGED, S.RECOVERY]
)
def test_a_closed_connection_leaves_these_untouched(status: S) -> None:
    assert after(status, Event.DISCONNECTED) is status


@given(st.sampled_from(S))
def test_loading_keeps_only_the_states_of_the_initial_copy(status: S) -> None:
    kept = status in (S.INIT, S.WAIT_SYNC, S.SYNCING)
    assert after(status, Event.LOADED) is (status if kept else S.OFFLINE)


@given(st.sampled_from(S), st.sampled_from(Event))
def test_only_a_report_of_the_storage_itself_makes_it_active(status: S, event: Event) -> None:
    if status is not S.ACTIVE and after(status, event) is S.ACTIVE:
        assert event is Event.REPORTED


@pytest.mark.parametrize(
    ("status", "reported", "result"),
    [
        (S.WAIT_SYNC, S.SYNCING, S.SYNCING),
        (S.SYNCING, S.OFFLINE, S.OFFLINE),
        (S.OFFLINE, S.RECOVERY, S.RECOVERY),
        (S.SYNCING, S.WAIT_SYNC, S.SYNCING),
        (S.INIT, S.SYNCING, S.INIT),
        (S.ONLINE, S.OFFLINE, S.ONLINE),
        (S.ACTIVE, S.DELETED, S.ACTIVE),
        (S.RECOVERY, S.OFFLINE, S.RECOVERY),
        (S.OFFLINE, S.DELETED, S.DELETED),
        (S.WAIT_SYNC, S.IP_CHANGED, S.IP_CHANGED),
    ],
)
def test_reports_of_others(status: S, reported: S, result: S) -> None:
    assert merge_report(status, reported) is result


@pytest.mark.parametrize(
    ("status", "told", "result"),
    [
        (S.WAIT_SYNC, S.ACTIVE, S.OFFLINE),
        (S.WAIT_SYNC, S.ONLINE, S.OFFLINE),
        (S.WAIT_SYNC, S.SYNCING, S.SYNCING),
        (S.ACTIVE, S.WAIT_SYNC, S.WAIT_SYNC),
    ],
)
def test_status_told_by_the_leader(status: S, told: S, result: S) -> None:
    assert override(status, told) is result


@given(st.sampled_from(sorted(AVAILABLE)), st.sampled_from(sorted(AVAILABLE)))
def test_differences_between_available_states_do_not_matter(status: S, told: S) -> None:
    assert override(status, told) is status
