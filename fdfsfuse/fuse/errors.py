"""The errno of every exception: the one place where it is chosen."""

from __future__ import annotations

import errno

from fdfsfuse.errors import ConnectionProblem, NoNamesError, ProtocolError, StatusError, TreeError
from fdfsfuse.proto import names

_NOT_FOR_USERS = {names.NOT_PRIMARY: errno.EIO, names.SESSION_ENDED: errno.EIO}


def errno_of(exc: Exception) -> int | None:
    """What a system call fails with because of *exc*; None when *exc* was not foreseen."""
    if isinstance(exc, TreeError):
        return exc.errno or errno.EIO
    if isinstance(exc, StatusError):
        code = exc.errno or errno.EIO
        return _NOT_FOR_USERS.get(code, code)
    if isinstance(exc, NoNamesError):
        return errno.EOPNOTSUPP
    if isinstance(exc, (ConnectionProblem, ProtocolError)):
        return errno.EIO
    if isinstance(exc, MemoryError):
        return errno.ENOMEM
    return None
