"""Changes that are made again on another content, against doing them one by one."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial

from hypothesis import given
from hypothesis import strategies as st

from fdfsfuse.vfs.edits import Edits

Step = tuple[str, int, bytes]
steps = st.lists(
    st.tuples(
        st.sampled_from(["write", "append", "resize"]), st.integers(0, 40), st.binary(max_size=9)
    ),
    max_size=12,
)


def write(content: bytearray, offset: int, data: bytes) -> None:
    content.extend(bytes(max(0, offset - len(content))))
    content[offset : offset + len(data)] = data


def append(content: bytearray, data: bytes) -> None:
    content += data


def resize(content: bytearray, size: int) -> None:
    del content[size:]
    content.extend(bytes(size - len(content)))


@given(st.binary(max_size=30), st.binary(max_size=30), steps)
def test_overlay_does_everything_again(base: bytes, newest: bytes, found: list[Step]) -> None:
    edits, own = Edits(), bytearray(base)
    again: list[Callable[[bytearray], None]] = []
    appended: list[Callable[[bytearray], None]] = []
    tail: int | None = None
    for kind, number, data in found:
        size = len(own)
        if kind == "resize":
            if tail is not None and number > tail:
                continue
            edits.resize(size, number)
            resize(own, number)
            again.append(partial(resize, size=number))
            # What was appended is cut off.
            tail, appended = None, []
        elif not data:
            continue
        elif kind == "append":
            tail = size if tail is None else tail
            edits.append(size)
            own += data
            appended.append(partial(append, data=data))
        else:
            if tail is not None and number + len(data) > tail:
                continue
            edits.write(number, number + len(data), size)
            write(own, number, data)
            again.append(partial(write, offset=number, data=data))
    expected = bytearray(newest)
    again += appended  # behind all that was written to other places
    for step in again:
        step(expected)
    length = len(own) - edits.tail if edits.tail is not None else 0
    assert edits.end_on(len(newest)) + length == len(expected)
    merged = edits.overlay(newest, own)
    assert merged == expected
    # The changes go with the content: they can be made once more.
    assert edits.overlay(b"x" * 50, merged) == _again(again, b"x" * 50)


def _again(steps: list[Callable[[bytearray], None]], content: bytes) -> bytearray:
    result = bytearray(content)
    for step in steps:
        step(result)
    return result


@given(st.lists(st.tuples(st.integers(0, 200), st.integers(1, 20)), max_size=40))
def test_ranges_are_those_of_the_writes(found: list[tuple[int, int]]) -> None:
    edits, touched = Edits(), set[int]()
    for start, length in found:
        edits.write(start, start + length, 300)
        touched.update(range(start, start + length))
    ranges = list(edits.ranges())
    assert {number for start, end in ranges for number in range(start, end)} == touched
    # Each as long as can be, and none touches the next.
    assert all(end < start for (_, end), (start, _) in itertools.pairwise(ranges))


def test_what_was_appended_and_then_changed_stays_where_it_was() -> None:
    edits = Edits()
    edits.append(4)
    edits.write(5, 6, 8)
    assert edits.overlay(b"0123456789", b"abcdEFGH") == b"0123EFGH89"
