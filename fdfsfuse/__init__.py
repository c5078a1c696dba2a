"""fdfsfuse: a FastDFS-compatible distributed file system that is mounted like a disk.

`Client` is for programs that use trio; `fdfsfuse.blocking.Client` for all others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fdfsfuse.errors import (
    ConfigError,
    ConnectFailed,
    ConnectionBroken,
    ConnectionProblem,
    DeadlineExceeded,
    FdfsError,
    IntegrityError,
    NotFoundError,
    NoVolumeError,
    ProtocolError,
    StatusError,
    TooFewCopiesError,
    UsageError,
)

if TYPE_CHECKING:
    from fdfsfuse.client.address import Address
    from fdfsfuse.client.client import Client, DownloadStream
    from fdfsfuse.client.plans.reading import FileDetails
    from fdfsfuse.proto.fileid import FileKind

__all__ = [
    "Address",
    "Client",
    "ConfigError",
    "ConnectFailed",
    "ConnectionBroken",
    "ConnectionProblem",
    "DeadlineExceeded",
    "DownloadStream",
    "FdfsError",
    "FileDetails",
    "FileKind",
    "IntegrityError",
    "NoVolumeError",
    "NotFoundError",
    "ProtocolError",
    "StatusError",
    "TooFewCopiesError",
    "UsageError",
    "__version__",
]
__version__ = "0.1.0"

_LAZY = {
    "Address": "fdfsfuse.client.address",
    "Client": "fdfsfuse.client.client",
    "DownloadStream": "fdfsfuse.client.client",
    "FileDetails": "fdfsfuse.client.plans.reading",
    "FileKind": "fdfsfuse.proto.fileid",
}


def __getattr__(name: str) -> Any:
    """Load the client when it is first used: the daemons and the commands start without it."""
    if name in _LAZY:
        import importlib

        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'fdfsfuse' has no attribute {name!r}")
