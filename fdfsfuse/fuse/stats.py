"""What a mount counts of its requests: numbers, times, and those that were slow or failed.

Counting is on the way of every request, so it is kept to a few hundred nanoseconds: the thread of
the event loop changes plain integers, and whoever reports reads them at any moment from another.
"""

from __future__ import annotations

import errno
import functools
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, NamedTuple, TypeAlias

from pyfuse3 import FUSEError

SLOW_NS = 1_000_000_000
"""A request that takes longer is noted."""
NOTED = 100
"""So many slow or failed requests are remembered."""
BUCKET_SHIFT = 12
BUCKETS = 64
"""Bucket i counts requests of less than ``1 << (i + BUCKET_SHIFT)`` ns: from 4 us up."""
ORDINARY = frozenset(
    (
        errno.ENOENT,
        errno.EEXIST,
        errno.ENODATA,
        errno.EACCES,
        errno.EPERM,
        errno.ENOTDIR,
        errno.EISDIR,
        errno.ENOTEMPTY,
        errno.EINVAL,
        errno.EXDEV,
        errno.ELOOP,
        errno.ENAMETOOLONG,
        errno.ERANGE,
        errno.EOPNOTSUPP,
        errno.ENOSYS,
        errno.EROFS,
        errno.EBUSY,
        errno.E2BIG,
        errno.EMLINK,
    )
)
"""What programs are refused in daily life; any other errno is a failure."""

clock = time.perf_counter_ns

_Handler: TypeAlias = Callable[..., Awaitable[Any]]


class Noted(NamedTuple):
    """A request that was slow or failed. ``at``: Unix time of its end; ``error``: errno or 0."""

    at: float
    operation: str
    what: str
    took_ns: int
    error: int


class OperationStats:
    """One kind of request. ``running`` has the arguments of those without an answer, by start."""

    __slots__ = ("buckets", "failed", "max_ns", "refused", "running", "total_ns")

    def __init__(self) -> None:
        self.buckets = [0] * BUCKETS
        self.total_ns = 0
        self.max_ns = 0
        self.refused = 0
        self.failed = 0
        self.running: dict[int, tuple[Any, ...]] = {}

    def count(self) -> int:
        """Requests that were answered."""
        return sum(self.buckets)


class Stats:
    """All requests of a mount. ``describe`` tells a request's arguments in words."""

    def __init__(self, describe: Callable[[tuple[Any, ...]], str]) -> None:
        self.operations: dict[str, OperationStats] = {}
        self.noted: deque[Noted] = deque(maxlen=NOTED)
        self.bytes_read = 0
        self.bytes_written = 0
        self.opened = 0
        self.pages_kept = 0
        self._describe = describe

    def counted(self, name: str, handler: _Handler, failed: Callable[..., int]) -> _Handler:
        """*handler*, counted; it raises FUSEError only.

        Args:
            failed: called with name, arguments and exception; returns the errno to fail with.
        """
        operation = self.operations.setdefault(name, OperationStats())
        running, buckets = operation.running, operation.buckets

        @functools.wraps(handler)
        async def counted(*args: Any) -> Any:
            # One thread begins all requests, so no two begin in the same nanosecond.
            start = clock()
            running[start] = args
            code = 0
            try:
                return await handler(*args)
            except Exception as exc:
                code = failed(name, args, exc)
                if code in ORDINARY:
                    operation.refused += 1
                else:
                    operation.failed += 1
                raise FUSEError(code) from None
            finally:
                del running[start]
                took = clock() - start
                buckets[(took >> BUCKET_SHIFT).bit_length()] += 1
                operation.total_ns += took
                if took > operation.max_ns:
                    operation.max_ns = took
                if took > SLOW_NS or (code and code not in ORDINARY):
                    self._note(name, args, took, code)

        return counted

    def _note(self, name: str, args: tuple[Any, ...], took_ns: int, error: int) -> None:
        """Remember a slow or failed request."""
        self.noted.append(Noted(time.time(), name, self._describe(args), took_ns, error))

    def waiting(self, longer_than_ns: int = SLOW_NS) -> Iterator[tuple[str, str, int]]:
        """(operation, arguments, ns until now) of requests without an answer, oldest first."""
        now = clock()
        found = [
            (start, name, args)
            for name, operation in list(self.operations.items())
            for start, args in list(operation.running.items())
            if now - start > longer_than_ns
        ]
        for start, name, args in sorted(found, key=lambda item: item[0]):
            yield name, self._describe(args), now - start
