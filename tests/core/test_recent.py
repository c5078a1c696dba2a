"""The dict with a bound, against one that is kept by hand."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fdfsfuse.core.recent import Recent


@given(st.integers(1, 50), st.lists(st.tuples(st.integers(0, 60), st.booleans())))
def test_the_oldest_go(limit: int, steps: list[tuple[int, bool]]) -> None:
    recent: Recent[int, int] = Recent(limit)
    model: dict[int, int] = {}
    for number, (key, keep) in enumerate(steps):
        model.pop(key, None)
        if keep:
            model[key] = recent[key] = number
        else:
            recent.pop(key, None)
        newest = list(model.items())[-len(recent) or len(model) :]
        assert list(recent.items()) == newest
        assert len(recent) <= limit


def test_a_sixteenth_goes_at_once() -> None:
    recent: Recent[int, int] = Recent(160)
    for number in range(161):
        recent[number] = number
    assert list(recent) == list(range(11, 161))
