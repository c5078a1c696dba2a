"""Who holds what, and what waits for whom."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import pytest
from hypothesis import given

from fdfsfuse.core.holds import Holds, Recall, Recalls, Waiting

LEASE = 10.0


def never_heard_of(session: int) -> float:
    return -math.inf


def always_heard_of(session: int) -> float:
    return math.inf


def add(
    recalls: Recalls[str],
    session: int,
    changes: list[Waiting],
    *,
    now: float = 0.0,
    everything: bool = False,
) -> Recall[str]:
    return recalls.add(
        session,
        now,
        LEASE,
        lambda number: f"r{number}",
        release=(5, 6),
        changes=changes,
        everything=everything,
    )


@given(
    st.lists(
        st.tuples(st.sampled_from(["add", "release"]), st.integers(1, 6), st.integers(1, 3)),
        max_size=60,
    )
)
def test_holds_are_a_set_of_pairs(steps: list[tuple[str, int, int]]) -> None:
    holds, model = Holds(100), set[tuple[int, int]]()
    for step, ino, session in steps:
        if step == "add":
            anybody = any(s != session for i, s in model if i in (ino, 9))
            assert holds.add([9, ino], session) == anybody
            model |= {(ino, session), (9, session)}
        else:
            holds.release(ino, session)
            model.discard((ino, session))
    assert len(holds) == len({ino for ino, _ in model})
    for ino in (*range(1, 7), 9):
        assert set(holds.holders(ino)) == {s for i, s in model if i == ino}
        for session in range(1, 4):
            others = holds.others(ino, session)
            assert len(others) == len(set(others))
            assert set(others) == {s for i, s in model if i == ino and s != session}
            assert holds.any_others([ino], session) == bool(others)
            assert holds.any_others([10, ino], session) == bool(others)


def test_the_oldest_are_asked_for_in_turn() -> None:
    holds = Holds(3)
    holds.add([1, 2, 3, 4], 1)
    holds.add([1], 2)
    assert holds.oldest(2) == [1, 2]
    assert holds.oldest(2) == [3, 4]
    assert holds.oldest(9) == [1, 2, 3, 4]


def test_a_change_goes_on_when_all_have_confirmed() -> None:
    recalls, change = Recalls[str](), Waiting()
    one, two = add(recalls, 1, [change]), add(recalls, 2, [change])
    assert recalls.of(1) == ["r1"]
    assert recalls.confirm(1, two.number) == (set(), [])
    assert recalls.confirm(1, one.number) == ({5, 6}, [])
    assert recalls.confirm(1, one.number) == (set(), [])
    assert recalls.confirm(2, two.number) == ({5, 6}, [change])
    assert not recalls


def test_what_was_told_again_stays_held() -> None:
    recalls = Recalls[str]()
    recall = add(recalls, 1, [])
    recalls.held_again(2, 5)
    recalls.held_again(1, 6)
    assert recalls.confirm(1, recall.number) == ({5}, [])


def test_a_session_that_ends_keeps_nobody_waiting() -> None:
    recalls, first, second = Recalls[str](), Waiting(), Waiting()
    add(recalls, 1, [first])
    add(recalls, 1, [first, second])
    add(recalls, 2, [second])
    assert recalls.drop(1) == [first]
    assert recalls.drop(2) == [second]


@pytest.mark.parametrize(
    ("heard", "end"), [(always_heard_of, 3.0 + LEASE), (lambda session: 1.0, 1.0 + LEASE)]
)
def test_waiting_ends_with_the_lease(heard: object, end: float) -> None:
    recalls, change = Recalls[str](), Waiting()
    assert callable(heard)
    add(recalls, 1, [change], now=3.0)
    assert recalls.next_end(heard) == end
    assert recalls.expire(end - 0.1, heard) == ([], [])
    assert recalls.expire(end, heard) == ([(1, {5, 6})], [change])
    assert not recalls


def test_after_a_restart_all_others_are_waited_for() -> None:
    recalls, change = Recalls[str](), Waiting()
    everything = [add(recalls, session, [], everything=True) for session in (1, 2, 3)]
    recalls.attach_to_everything(2, change)
    assert change.recalls == 2
    assert recalls.expire(LEASE - 0.1, never_heard_of) == ([], [])
    assert recalls.confirm(1, everything[0].number)[1] == []
    assert recalls.expire(LEASE, never_heard_of)[1] == [change]
    later = Waiting()
    recalls.attach_to_everything(2, later)
    assert later.recalls == 0
