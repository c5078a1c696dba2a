"""Who may make files on its own, and who has to wait for that."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import given

from fdfsfuse.core.grants import Grants, Revocation

A, B = 1, 2


def test_only_one_session_has_a_grant() -> None:
    grants = Grants(10)
    assert not grants
    assert grants.grant(5, A)
    assert grants.grant(5, A)
    assert not grants.grant(5, B)
    assert grants.in_the_way(A, [5, 6]) == (None, [])
    assert grants.in_the_way(B, [6]) == (None, [])


def test_a_grant_is_recalled_once_for_all_who_wait() -> None:
    grants = Grants(10)
    for ino in (5, 6):
        assert grants.grant(ino, A)
    waits, new = grants.in_the_way(B, [5, 6])
    assert new == [waits]
    assert waits is not None
    assert (waits.session, waits.inos) == (A, [5, 6])
    assert grants.in_the_way(3, [6]) == (waits, [])
    assert not grants.grant(5, A), "it is being recalled"
    grants.ended(waits)
    assert not grants
    assert grants.in_the_way(B, [5, 6]) == (None, [])
    assert grants.grant(5, B)


def test_after_a_restart_everybody_waits_for_those_who_may_have_grants() -> None:
    grants = Grants(10)
    revocation = grants.found(A)
    assert grants.in_the_way(A, [5]) == (None, [])
    assert grants.in_the_way(B, [5]) == (revocation, [])
    assert grants.in_the_way(B, [5], known_only=True) == (None, [])
    assert (grants.others_have_any(A), grants.others_have_any(B)) == (False, True)
    assert not grants.grant(5, A)
    assert not grants.grant(5, B)
    grants.ended(revocation)
    assert grants.in_the_way(B, [5]) == (None, [])
    assert grants.grant(5, B)


def test_of_two_that_may_have_grants_each_waits_for_the_other() -> None:
    grants = Grants(10)
    of_a, of_b = grants.found(A), grants.found(B)
    assert grants.in_the_way(A, [5]) == (of_b, [])
    assert grants.in_the_way(B, [5]) == (of_a, [])


def test_the_oldest_are_given_up() -> None:
    grants = Grants(3)
    for ino in range(4):
        assert grants.give_up(2) == []
        assert grants.grant(ino, A if ino else B)
    given_up = grants.give_up(2)
    assert [(found.session, found.inos) for found in given_up] == [(B, [0]), (A, [1])]
    assert grants.grant(4, A)
    assert grants.grant(5, A)
    assert not grants.grant(6, A), "nobody confirms"
    for revocation in given_up:
        grants.ended(revocation)
    assert grants.grant(6, A)


def test_a_session_that_has_ended_has_no_grants() -> None:
    grants = Grants(10)
    assert grants.grant(5, A)
    assert grants.grant(6, A)
    waits, _ = grants.in_the_way(B, [6])
    assert waits is not None
    grants.drop(A)
    assert grants.in_the_way(B, [5]) == (None, [])
    assert grants.in_the_way(B, [6]) == (waits, [])
    grants.ended(waits)
    assert not grants


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["grant", "look", "end", "drop", "remove"]),
            st.integers(1, 3),
            st.integers(1, 3),
        ),
        max_size=80,
    )
)
def test_nobody_looks_where_another_has_a_grant(steps: list[tuple[str, int, int]]) -> None:
    grants, model = Grants(100), dict[int, int]()
    under_way: list[Revocation] = []
    for step, ino, session in steps:
        if step == "grant":
            revoked = any(ino in revocation.inos for revocation in under_way)
            assert grants.grant(ino, session) == (
                model.setdefault(ino, session) == session and not revoked
            )
        elif step == "look":
            waits, new = grants.in_the_way(session, [ino])
            assert (waits is None) == (model.get(ino, session) == session)
            under_way += new
        elif step == "end" and under_way:
            revocation = under_way.pop()
            grants.ended(revocation)
            for gone in revocation.inos:
                del model[gone]
        elif step == "drop":
            grants.drop(session)
            revoked_inos = {gone for revocation in under_way for gone in revocation.inos}
            model = {i: s for i, s in model.items() if s != session or i in revoked_inos}
        elif step == "remove":
            grants.removed(ino)
            if not any(ino in revocation.inos for revocation in under_way):
                model.pop(ino, None)
        assert len(grants) == len(model)
        for one in range(1, 4):
            assert grants.others_have_any(one) == any(s != one for s in model.values())
