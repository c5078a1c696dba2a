"""``NAME=VALUE`` arguments."""

from __future__ import annotations

from collections.abc import Sequence

from fdfsfuse.errors import UsageError


def parse_pairs(arguments: Sequence[str]) -> dict[str, str]:
    """``("width=1024",)`` -> ``{"width": "1024"}``; UsageError for anything else."""
    pairs: dict[str, str] = {}
    for argument in arguments:
        name, separator, value = argument.partition("=")
        if not separator or not name:
            raise UsageError(f"{argument!r} is not NAME=VALUE")
        pairs[name] = value
    return pairs
