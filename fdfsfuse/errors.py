"""Every exception of fdfsfuse, in one tree. Each has an ``errno``.

::

    FdfsError                     anything that fdfsfuse raises on purpose
     +-- UsageError               EINVAL: the caller broke a rule of ours (also a ValueError)
     +-- ProtocolError            EPROTO: the peer sent bytes that the protocol does not allow
     +-- StatusError              the peer answered with a status other than 0 (also an OSError)
     |    +-- NotFoundError       ENOENT: no such file or volume (also a FileNotFoundError)
     |         +-- NoVolumeError  ENOENT: the trackers know no such volume
     +-- TreeError                the tree refuses an operation (also an OSError)
     +-- TooFewCopiesError        EAGAIN: the file is stored, but not on as many servers as asked
     +-- IntegrityError           EIO: content is not what its file id says
     +-- ConnectionProblem        EHOSTUNREACH: no answer arrived; whether the request was carried
     |    |                       out is unknown
     |    +-- ConnectionBroken    ECONNRESET: the connection ended in the middle of an exchange
     |    +-- ConnectFailed       ECONNREFUSED: no connection could be made: nothing was carried out
     |    +-- DeadlineExceeded    ETIMEDOUT: the caller's deadline passed
     |    +-- NoTreeError         EHOSTUNREACH: no storage of the group keeps a tree of names (yet)
     +-- NoNamesError             EOPNOTSUPP: the servers are stock FastDFS: they keep no names
     +-- ConfigError              EINVAL: a configuration file or an option is wrong; one line
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from typing import Any


class FdfsError(Exception):
    """Base of all errors that fdfsfuse raises on purpose. ``errno`` is a Linux error number."""

    errno: int | None


class UsageError(FdfsError, ValueError):
    """The caller passed something that can never work, e.g. an extension of seven characters."""

    errno = errno.EINVAL


class ProtocolError(FdfsError):
    """The peer's bytes break the protocol. The connection that carried them cannot be used on."""

    errno = errno.EPROTO


class StatusError(FdfsError, OSError):
    """The peer answered with a non-zero status.

    ``errno`` is the status byte (Linux errno numbers, wire.md section 1). Status 2 makes a
    `NotFoundError`.
    """

    what: str

    def __new__(cls, status: int, what: str = "") -> StatusError:
        text = os.strerror(status)
        if status == errno.ENOENT:
            cls = NotFoundError
        self = super().__new__(cls, status, f"{what}: {text}" if what else text)
        self.what = what
        return self

    def __init__(self, status: int, what: str = "") -> None:
        """OSError has taken its arguments in ``__new__``."""

    def __reduce__(self) -> tuple[Any, ...]:
        return StatusError, (self.errno, self.what)


class NotFoundError(StatusError, FileNotFoundError):
    """There is no such file, metadata, group or server."""


class NoVolumeError(NotFoundError):
    """The trackers know no such volume. The text says which they know."""

    volume: str
    known: Sequence[str]

    def __new__(cls, volume: str, known: Sequence[str]) -> NoVolumeError:
        what = f"there is no volume {volume}; there are: {', '.join(known) or 'none'}"
        self = OSError.__new__(cls, errno.ENOENT, what)
        self.what, self.volume, self.known = what, volume, known
        return self

    def __init__(self, volume: str, known: Sequence[str]) -> None:
        """OSError has taken its arguments in ``__new__``."""

    def __reduce__(self) -> tuple[Any, ...]:
        return NoVolumeError, (self.volume, self.known)


class TreeError(FdfsError, OSError):
    """The tree of a mount refuses an operation before any server was asked. ``errno`` says why."""

    def __init__(self, code: int) -> None:
        OSError.__init__(self, code, os.strerror(code))


class TooFewCopiesError(FdfsError):
    """An upload is stored, but is not known to be on as many servers as the caller asked for.

    ``file_id`` is the file's id; ``count`` servers have it for sure.
    """

    errno = errno.EAGAIN

    def __init__(self, file_id: str, count: int, wanted: int, why: str) -> None:
        servers = "server" if count == 1 else "servers"
        super().__init__(f"{file_id} is stored on {count} {servers}, not {wanted}: {why}")
        self.file_id = file_id
        self.count = count


class IntegrityError(FdfsError):
    """Content that was downloaded has not the size and the CRC-32 that it should have."""

    errno = errno.EIO


class ConnectionProblem(FdfsError):
    """No answer arrived. Unless it is ConnectFailed, the request may have been carried out."""

    errno = errno.EHOSTUNREACH


class ConnectionBroken(ConnectionProblem):
    """The peer or the network ended the connection before the answer was complete.

    Attributes:
        stale: the connection had been kept idle, and no byte of the answer had come.
        unsent: the peer cannot have got the whole request, so it was not carried out.
    """

    errno = errno.ECONNRESET
    stale = False
    unsent = False


class ConnectFailed(ConnectionProblem):
    """No connection could be made; the request was not sent."""

    errno = errno.ECONNREFUSED


class DeadlineExceeded(ConnectionProblem):
    """The deadline that the caller gave passed before the answer was complete."""

    errno = errno.ETIMEDOUT


class NoTreeError(ConnectionProblem):
    """All storages of the group have answered that they keep no tree of names."""


class NoNamesError(FdfsError):
    """The group's storages are stock FastDFS servers: files are reachable by their ids only."""

    errno = errno.EOPNOTSUPP


class ConfigError(FdfsError):
    """A configuration value is wrong. The text names file, line and what it must be."""

    errno = errno.EINVAL


def describe(exc: FdfsError | OSError) -> str:
    """What happened, for people: without the number of the error, and with the file if any."""
    if not isinstance(exc, OSError) or not exc.strerror:
        return str(exc)
    return f"{exc.filename}: {exc.strerror}" if exc.filename is not None else exc.strerror


def single(exc: BaseException) -> BaseException:
    """The one exception inside nested groups of one, or *exc* itself."""
    inner = getattr(exc, "exceptions", None)
    while isinstance(inner, tuple) and len(inner) == 1:
        exc = inner[0]
        inner = getattr(exc, "exceptions", None)
    return exc
