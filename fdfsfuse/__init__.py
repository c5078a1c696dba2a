"""fdfsfuse: a FastDFS-compatible distributed file system that is mounted like a disk."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fdfsfuse.client.client import Client
    from fdfsfuse.client.plans.reading import FileDetails

__all__ = ["Client", "FileDetails", "__version__"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Load the client when it is first used: the daemons and the commands start without it."""
    if name in ("Client", "FileDetails"):
        from fdfsfuse.client import client

        return getattr(client, name)
    raise AttributeError(f"module 'fdfsfuse' has no attribute {name!r}")
