"""Tasks that take turns in waiting for a descriptor."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pyfuse3
import pytest
import trio
import trio.testing

from fdfsfuse.fuse import request_turns
from fdfsfuse.fuse.request_turns import RequestTurns, take_turns


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe2(os.O_NONBLOCK)
    yield ends
    for end in ends:
        os.close(end)


@pytest.fixture(autouse=True)
def plain_pyfuse3(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test changes is undone."""
    monkeypatch.setattr(pyfuse3, "trio", trio)


def turns() -> RequestTurns:
    made = RequestTurns(request_turns._Readers())
    trio.lowlevel.add_instrument(made)
    return made


async def test_one_task_for_each_request(pipe: tuple[int, int]) -> None:
    """Each byte is read by one task, although others wait; a task that is busy misses none."""
    waiting = turns()
    taken: list[tuple[int, bytes]] = []
    busy = trio.Event()

    async def serve(number: int) -> None:
        while True:
            await waiting.wait_readable(pipe[0])
            data = os.read(pipe[0], 1)  # BlockingIOError if there were two
            taken.append((number, data))
            if data == b"w":
                await busy.wait()

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for number in range(3):
                nursery.start_soon(serve, number)
            for text in (b"a", b"b", b"wc", b"wd", b"efg"):
                before = len(taken)
                os.write(pipe[1], text)
                while len(taken) < before + len(text):
                    await trio.testing.wait_all_tasks_blocked()
            assert b"".join(data for _, data in taken) == b"abwcwdefg"
            slow = [number for number, data in taken if data == b"w"]
            assert len(set(slow)) == 2
            assert {number for number, data in taken if data in b"efg"} == {0, 1, 2} - set(slow)
            busy.set()
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()


async def test_a_task_may_be_cancelled_while_it_waits(pipe: tuple[int, int]) -> None:
    waiting = turns()
    scopes: list[trio.CancelScope] = []
    taken = []

    async def serve(number: int) -> None:
        with trio.CancelScope() as scope:
            scopes.append(scope)
            await waiting.wait_readable(pipe[0])
            taken.append(os.read(pipe[0], 1))

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for number in range(5):
                nursery.start_soon(serve, number)
            for _ in range(4):
                await trio.testing.wait_all_tasks_blocked()
                scopes.pop().cancel()
            await trio.testing.wait_all_tasks_blocked()
            os.write(pipe[1], b"x")
    assert taken == [b"x"]


async def test_closing_sends_all_away(pipe: tuple[int, int]) -> None:
    waiting = turns()
    ended = 0

    async def serve() -> None:
        nonlocal ended
        with pytest.raises(trio.ClosedResourceError):
            await waiting.wait_readable(pipe[0])
        ended += 1

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(serve)
            await trio.testing.wait_all_tasks_blocked()
            waiting.notify_closing(pipe[0])
    assert ended == 3


async def test_this_trio_has_what_is_needed() -> None:
    take_turns()
    assert pyfuse3.trio is not trio  # type: ignore[attr-defined]


async def test_another_trio_leaves_pyfuse3_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    class Missing:
        def __init__(self) -> None:
            raise AttributeError("no such thing")

    monkeypatch.setattr(request_turns, "_Readers", Missing)
    take_turns()
    assert pyfuse3.trio is trio  # type: ignore[attr-defined]
