"""Answering what became of the changes of a session that has ended.

A mount that was cut off for longer than its lease asks in its new session about each change that
got no answer (docs/names-protocol.rst). The end of a session is a record in the log, and the engine
refuses all later changes of the session. So a change that has no outcome by then was not made and
never will be, and the mount may make it again.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from fdfs_storage.names.checks import fail
from fdfsfuse.proto import names

if TYPE_CHECKING:
    from fdfs_storage.names.engine import Engine
    from fdfs_storage.names.reads import Reads
    from fdfs_storage.names.sessions import Session, Sessions
    from fdfs_storage.names.work import Reply


class FormerSessions:
    """See the module."""

    def __init__(self, engine: Engine, sessions: Sessions, reads: Reads) -> None:
        self._engine = engine
        self._sessions = sessions
        self._reads = reads

    async def ask(self, own: Session, request: names.FormerOutcome, reply: Reply) -> bool:
        """Answer a change that was made once more.

        This answer waits for the same recalls and copies as the first one, which may never have
        been given.

        Returns:
            Whether the change was made; then *reply* is or will be called with its answer.

        Raises:
            StatusError: see `names.FormerOutcome`, or the session could not be ended.
        """
        if request.session == own.number:
            raise fail(errno.EINVAL, "the session asks about itself")
        session = self._sessions.get(request.session)
        if session is not None:
            _check_token(session.token, request.token)
            # Its mount has given it up, whatever its lease says.
            if session.connection is not None:
                session.connection.shutdown()
            await session.commit_end(self._engine)
        token = self._reads.ended_token(request.session)
        if token is None:
            raise fail(errno.ENOENT, "outcomes are not kept any more")
        _check_token(token, request.token)
        stored = self._reads.result(request.session, request.id)
        if stored is None:
            return False
        if self._engine.gate.counts:
            reply = self._engine.gate.held(reply)
        if not self._engine.on_repeat(request.session, request.id, reply):
            reply(0, stored)
        return True


def _check_token(token: bytes, given: bytes) -> None:
    if token != given:
        raise fail(errno.EPERM, "token")
