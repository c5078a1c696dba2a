"""Whether what the answers to requests tell may be kept."""

from __future__ import annotations

from fdfsfuse.proto import names
from fdfsfuse.vfs.flights import Flights

STAT = names.GetAttr(5)
LOOKUP = names.Lookup(1, b"name")


def test_what_was_recalled_since_the_request_was_sent_is_not_kept() -> None:
    flights = Flights()
    before = flights.begin(STAT)
    flights.recall(5)
    after = flights.begin(STAT)
    assert not flights.told(5, before)
    assert not flights.is_fresh(5, before)
    assert flights.is_fresh(5, after)
    assert flights.is_fresh(6, before)
    flights.recall_all()
    assert not flights.is_fresh(6, before)
    assert not flights.is_fresh(6, after)


def test_a_recall_while_nothing_is_in_flight_outdates_nothing() -> None:
    flights = Flights()
    flights.end(flights.begin(STAT))
    flights.recall(5)
    assert flights.told(5, flights.begin(STAT))


def test_answers_about_one_inode_that_overlapped_are_not_kept() -> None:
    flights = Flights()
    first, second = flights.begin(STAT), flights.begin(STAT)
    assert flights.told(5, second)  # nothing else is known of it yet
    assert not flights.told(5, first)
    flights.end(first)
    flights.end(second)
    assert flights.told(5, flights.begin(STAT))


def test_changes_in_a_directory_add_up_unless_it_was_told_of() -> None:
    flights = Flights()
    first, second, third = (flights.begin(LOOKUP) for _ in range(3))
    assert flights.changed(1, second)
    assert flights.changed(1, first)
    assert not flights.told(1, third)
    assert not flights.changed(1, third)


def test_what_is_answered_here_outdates_what_was_asked_before() -> None:
    flights = Flights()
    lookup = flights.begin(LOOKUP)
    attr = names.Attr(5, 0o100644, 1, 0, 0, 0, 3, 1, 2, 3, 1)
    flights.foresee(names.SetAttr(5, 9, mode=0o600), attr)
    assert not flights.is_fresh(5, lookup)
    assert flights.is_fresh(1, lookup)
    flights.foresee(names.Create(1, b"other", 0o644, 0, 0, 9), attr)
    assert not flights.is_fresh(1, lookup)


def test_a_directory_is_concerned_while_a_request_may_have_it_locked() -> None:
    flights = Flights()
    rename = flights.begin(names.Rename(1, b"a", 2, b"b", 0, 9))
    assert flights.concern(1)
    assert flights.concern(2)
    flights.end(rename)
    assert not flights.concern(1)
    with flights.locked(1), flights.locked(1):
        assert flights.concern(1)
    assert not flights.concern(1)
