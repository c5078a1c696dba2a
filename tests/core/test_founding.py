"""Who founds the tree of a group: trackers that lose messages and restart choose one at most."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fdfsfuse.core.founding import (
    FIRST,
    Acceptor,
    check_ballot,
    majority,
    next_ballot,
    value_to_propose,
)
from fdfsfuse.errors import ProtocolError
from fdfsfuse.proto.cluster_status import Ballot, Founder, FounderBallot, FounderVote

A, B = Founder("10.0.0.1", 1000), Founder("10.0.0.2", 2000)


def ask(acceptor: Acceptor, ballot: Ballot, value: Founder | None = None) -> FounderVote:
    return acceptor.vote(FounderBallot("group1", ballot, value))


def test_an_acceptor_keeps_its_promise() -> None:
    acceptor = Acceptor()
    assert ask(acceptor, Ballot(2, "t1")).granted
    assert not ask(acceptor, Ballot(1, "t2"), A).granted
    assert ask(acceptor, Ballot(2, "t1"), B) == FounderVote(
        True, Ballot(2, "t1"), Ballot(2, "t1"), B
    )
    refused = ask(acceptor, Ballot(2, "t0"), A)
    assert (refused.granted, refused.value) == (False, B)


def test_what_may_be_chosen_already_is_proposed() -> None:
    empty = FounderVote(True, FIRST)
    low = FounderVote(True, FIRST, Ballot(1, "t9"), A)
    high = FounderVote(True, FIRST, Ballot(2, "t1"), B)
    assert value_to_propose([empty, empty], A) == A
    assert value_to_propose([low, empty, high], A) == B


def test_ballots_grow() -> None:
    assert next_ballot([], "t1") == Ballot(1, "t1")
    assert next_ballot([Ballot(4, "t2"), Ballot(7, "t1")], "t1") == Ballot(8, "t1")


@pytest.mark.parametrize(("voters", "needed"), [(1, 1), (2, 2), (3, 2), (4, 3), (5, 3)])
def test_majority(voters: int, needed: int) -> None:
    assert majority(voters) == needed


@pytest.mark.parametrize(
    "request_",
    [
        FounderBallot("no-group", Ballot(1, "t1")),
        FounderBallot("group1", Ballot(0, "t1")),
        FounderBallot("group1", Ballot((1 << 64) - 1, "t1")),
        FounderBallot("group1", Ballot(1, "t" * 200)),
        FounderBallot("group1", Ballot(1, "t1"), Founder("", 1)),
        FounderBallot("group1", Ballot(1, "t1"), Founder("x" * 16, 1)),
        FounderBallot("group1", Ballot(1, "t1"), None, ["a"] * 33),
        FounderBallot("group1", Ballot(1, "t1"), None, ["y" * 4000]),
    ],
)
def test_ballots_that_make_no_sense(request_: FounderBallot) -> None:
    with pytest.raises(ProtocolError):
        check_ballot(request_)


def test_a_removed_founder_is_forgotten() -> None:
    acceptor = Acceptor()
    ask(acceptor, Ballot(1, "t1"), A)
    acceptor.forget(B.storage_id)
    assert acceptor.value == A
    acceptor.forget(A.storage_id)
    assert acceptor.value is None
    ask(acceptor, Ballot(2, "t1"), A)
    vote = acceptor.vote(FounderBallot("group1", Ballot(3, "t1"), None, [A.storage_id]))
    assert (vote.granted, vote.value) == (True, None)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from([1, 2, 3, 5]), st.randoms(use_true_random=False))
def test_at_most_one_is_chosen(count: int, chance: random.Random) -> None:
    """Several proposers, each with its own storage, over a network that loses what it likes.

    A proposer always asks itself: its next ballot is higher than the last one because of that.
    """
    acceptors = [Acceptor() for _ in range(count)]
    chosen: set[Founder] = set()
    running: list[list[object]] = []

    def reach(ballot: Ballot, value: Founder | None) -> list[FounderVote]:
        votes = []
        for number, acceptor in enumerate(acceptors):
            own = ballot.tracker == f"t{number}"
            if own or chance.random() < 0.7:
                vote = ask(acceptor, ballot, value)
                if (own or chance.random() < 0.8) and vote.granted:  # else the answer is lost
                    votes.append(vote)
        return votes

    for _ in range(12):
        if running and chance.random() < 0.5:
            # An accept that was on its way for a while.
            ballot, value = running.pop(chance.randrange(len(running)))
            assert isinstance(ballot, Ballot)
            assert isinstance(value, Founder)
            if len(reach(ballot, value)) >= majority(count):
                chosen.add(value)
            continue
        proposer = chance.randrange(count)
        ballot = next_ballot([acceptors[proposer].promised], f"t{proposer}")
        promises = reach(ballot, None)
        if len(promises) >= majority(count):
            running.append([ballot, value_to_propose(promises, chance.choice([A, B]))])
    assert len(chosen) <= 1
