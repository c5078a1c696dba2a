"""Waiting for conditions, with a deadline."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import trio

_T = TypeVar("_T")

POLL_S = 0.01


def wait_until(
    condition: Callable[[], _T | None],
    what: str,
    *,
    timeout_s: float = 60.0,
    poll_s: float = POLL_S,
) -> _T:
    """Call *condition* until its result is true, and return that result.

    *poll_s* is the pause between two calls; give a longer one when the condition costs much.

    Raises:
        TimeoutError: it did not become true in *timeout_s*; *what* says what was waited for.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        result = condition()
        if result:
            return result
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {timeout_s:g} s for {what}")
        time.sleep(poll_s)


async def wait_for(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    """Let other tasks go on until *condition*, which has no event, holds.

    It is looked at so seldom that a server in this process may rest meanwhile.

    Raises:
        trio.TooSlowError: it did not hold within *timeout_s*.
    """
    with trio.fail_after(timeout_s):
        while not condition():  # noqa: ASYNC110
            await trio.sleep(POLL_S)
