"""Every exception of fdfsfuse, in one tree.

::

    FdfsError                     anything that fdfsfuse raises on purpose
     +-- UsageError               the caller broke a rule of ours (also a ValueError)
     +-- ProtocolError            the peer sent bytes that the protocol does not allow
     +-- StatusError              the peer answered with a status other than 0 (also an OSError)
     +-- TreeError                the tree refuses an operation (also an OSError)
     +-- ConnectionProblem        no answer arrived; whether the request was carried out is unknown
     |    +-- ConnectionBroken    the connection ended in the middle of an exchange
     |    +-- ConnectFailed       no connection could be made, so nothing was carried out
     |    +-- DeadlineExceeded    the caller's deadline passed
     +-- NoNamesError             the servers are stock FastDFS: they keep no names
     +-- ConfigError              a configuration file or an option is wrong; shown as one line
"""

from __future__ import annotations

import os


class FdfsError(Exception):
    """Base of all errors that fdfsfuse raises on purpose."""


class UsageError(FdfsError, ValueError):
    """The caller passed something that can never work, e.g. an extension of seven characters."""


class ProtocolError(FdfsError):
    """The peer's bytes break the protocol. The connection that carried them cannot be used on."""


class StatusError(FdfsError, OSError):
    """The peer answered with a non-zero status.

    ``errno`` is the status byte (Linux errno numbers, wire.md section 1).
    """

    def __init__(self, status: int, what: str = "") -> None:
        text = os.strerror(status)
        OSError.__init__(self, status, f"{what}: {text}" if what else text)
        self.what = what


class TreeError(FdfsError, OSError):
    """The tree of a mount refuses an operation before any server was asked. ``errno`` says why."""

    def __init__(self, code: int) -> None:
        OSError.__init__(self, code, os.strerror(code))


class ConnectionProblem(FdfsError):
    """No answer arrived. Unless it is ConnectFailed, the request may have been carried out."""


class ConnectionBroken(ConnectionProblem):
    """The peer or the network ended the connection before the answer was complete."""


class ConnectFailed(ConnectionProblem):
    """No connection could be made; the request was not sent."""


class DeadlineExceeded(ConnectionProblem):
    """The deadline that the caller gave passed before the answer was complete."""


class NoNamesError(FdfsError):
    """The group's storages are stock FastDFS servers: files are reachable by their ids only."""


class ConfigError(FdfsError):
    """A configuration value is wrong. The text names file, line and what is allowed."""
