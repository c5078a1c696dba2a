"""The decisions of the names log: positions, commits, views."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fdfsfuse.core.names_log import (
    Acknowledge,
    Append,
    Commit,
    LogGap,
    NotPrimary,
    Output,
    Position,
    Replica,
    Send,
    StaleView,
    View,
)
from fdfsfuse.errors import UsageError
from fdfsfuse.proto.names_record import Record

START = Position(0, 0)
ALONE = View(1, "a", ("a",))
THREE = View(1, "a", ("a", "b", "c"))


def replica(own: str, view: View, last: Position = START, commit: int = 0) -> Replica:
    return Replica(own, view, last, commit)


def records(*indexes: int, view: int = 1) -> tuple[Record, ...]:
    return tuple(Record(view, index, b"%d" % index) for index in indexes)


def test_alone_commits_what_it_has_synced() -> None:
    machine = replica("a", ALONE)
    assert machine.propose([b"1", b"2"]) == [Append(records(1, 2))]
    assert machine.commit == 0
    assert machine.has("a", 1) == [Commit(1)]
    assert machine.has("a", 2) == [Commit(2)]
    assert machine.has("a", 2) == []
    assert machine.propose([]) == []


def test_the_slowest_member_decides() -> None:
    machine = replica("a", THREE)
    assert machine.propose([b"1"]) == [
        Append(records(1)),
        Send("b", START, records(1)),
        Send("c", START, records(1)),
    ]
    machine.propose([b"2"])
    assert machine.has("b", 2) == []
    assert machine.has("a", 2) == []
    assert machine.has("c", 1) == [Commit(1)]
    assert machine.has("stranger", 2) == []
    assert machine.has("c", 2) == [Commit(2)]


def test_a_late_report_takes_nothing_back() -> None:
    machine = replica("a", View(1, "a", ("a", "b")))
    machine.propose([b"1", b"2"])
    machine.has("a", 2)
    assert machine.has("b", 2) == [Commit(2)]
    assert machine.has("b", 1) == []
    assert machine.commit == 2


def test_nobody_has_what_was_never_proposed() -> None:
    with pytest.raises(UsageError):
        replica("a", ALONE).has("a", 1)


def test_a_restart_alone_commits_its_log() -> None:
    machine = replica("a", ALONE, Position(1, 9), commit=7)
    assert machine.start() == [Commit(9)]
    with pytest.raises(UsageError):
        replica("a", ALONE, Position(1, 6), commit=7)
    with pytest.raises(StaleView):
        replica("a", ALONE, Position(2, 6))


def test_a_member_follows() -> None:
    member = replica("b", THREE)
    assert member.receive(1, START, records(1, 2), 0) == [
        Append(records(1, 2)),
        Acknowledge("a", 2),
    ]
    assert member.receive(1, Position(1, 2), (), 2) == [Commit(2)]
    assert member.receive(1, Position(1, 2), records(3), 99) == [
        Append(records(3)),
        Acknowledge("a", 3),
        Commit(3),
    ]
    with pytest.raises(NotPrimary):
        member.propose([b"x"])
    with pytest.raises(NotPrimary):
        replica("a", THREE).receive(1, START, records(1), 0)


@pytest.mark.parametrize(
    ("after", "given_records"),
    [
        (Position(1, 1), records(2)),
        (START, records(2)),
        (START, records(1, 3)),
        (START, records(1, view=2)),
    ],
)
def test_a_member_takes_no_gap(after: Position, given_records: tuple[Record, ...]) -> None:
    member = replica("b", THREE)
    with pytest.raises(LogGap):
        member.receive(1, after, given_records, 0)
    assert member.last == START


def test_view_numbers_only_rise() -> None:
    machine = replica("b", View(3, "a", ("a", "b")))
    for number in (1, 3):
        with pytest.raises(StaleView):
            machine.install(View(number, "b", ("b",)))
    with pytest.raises(StaleView):
        machine.receive(2, START, records(1), 0)
    with pytest.raises(LogGap):
        machine.receive(4, START, records(1), 0)
    primary = replica("a", View(3, "a", ("a", "b")))
    primary.propose([b"1"])
    with pytest.raises(StaleView):
        primary.has("b", 1, view=2)


def test_dropping_a_member_commits_what_the_others_have() -> None:
    machine = replica("a", THREE)
    machine.propose([b"1"])
    machine.has("a", 1)
    machine.has("b", 1)
    assert machine.commit == 0
    assert machine.install(View(2, "a", ("a", "b"))) == []
    assert machine.has("b", 1, view=2) == [Commit(1)]
    assert machine.propose([b"2"])[0] == Append((Record(2, 2, b"2"),))


def test_a_new_primary_goes_on_with_its_log() -> None:
    member = replica("b", THREE)
    member.receive(1, START, records(1, 2), 1)
    assert member.commit == 1
    member.has("b", 2)
    assert member.install(View(2, "b", ("b",))) == [Commit(2)]
    assert member.propose([b"3"]) == [Append((Record(2, 3, b"3"),))]


@pytest.mark.parametrize(
    ("number", "primary", "members"),
    [(0, "a", ("a",)), (1, "b", ("a",)), (1, "a", ("a", "a")), (1, "a", ())],
)
def test_impossible_views(number: int, primary: str, members: tuple[str, ...]) -> None:
    with pytest.raises(UsageError):
        View(number, primary, members)


def test_taking_back_what_could_not_be_written() -> None:
    machine = replica("a", ALONE)
    machine.propose([b"1"])
    machine.has("a", 1)
    before = machine.last
    machine.propose([b"2", b"3"])
    machine.retract(before)
    assert machine.propose([b"4"]) == [Append((Record(1, 2, b"4"),))]
    with pytest.raises(UsageError):
        machine.retract(START)
    shared = replica("a", THREE)
    shared.propose([b"1"])
    with pytest.raises(UsageError):
        shared.retract(START)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 4)), max_size=60))
def test_what_is_committed_every_member_has(events: list[tuple[str, int]]) -> None:
    """Members write and report in any order; the primary proposes when it reports itself."""
    logs: dict[str, int] = {"a": 0, "b": 0, "c": 0}
    machine = replica("a", THREE)
    committed = 0
    for member, count in events:
        if member == "a":
            machine.propose([b"x"] * count)
            logs["a"] = machine.last.index
        else:
            logs[member] = min(machine.last.index, logs[member] + count)
        outputs: list[Output] = machine.has(member, logs[member])
        for output in outputs:
            assert isinstance(output, Commit)
            assert output.index > committed
            committed = output.index
        assert committed == machine.commit == min(logs.values())
