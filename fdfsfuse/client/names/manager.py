"""Names sessions as context managers; see `fdfsfuse.client.names.session` for what they are."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import AbstractAsyncContextManager
from types import TracebackType

import trio

from fdfsfuse.client.names.lease import Lease
from fdfsfuse.client.names.session import NamesSession
from fdfsfuse.client.views import Finder
from fdfsfuse.proto import names


def open_session(
    find: Finder,
    *,
    client: str,
    holds: Callable[[], Collection[int]] = tuple,
    on_push: Callable[[names.Push], None] | None = None,
    on_lease_lost: Callable[[], None] | None = None,
    lease_s: float = 0.0,
    lease: Lease | None = None,
) -> AbstractAsyncContextManager[NamesSession]:
    """A names session that lasts as long as the ``async with`` block.

    Entering does not wait for a server: the session is opened in the background, and calls wait
    for it. Leaving closes it politely when it is connected.

    Args:
        find: gives the group's storages (id and address); may raise a ConnectionProblem.
        client: tells people who this is: ``host:/mnt:pid``.
        holds: the inodes that are open now; sent first whenever the session has been taken up.
        on_push: called for each push of the server; must not block. Without it recalls are
            confirmed at once: for users who keep nothing that they were told.
        on_lease_lost: called when the lease had run out, before the next answer is given; must not
            block.
        lease_s: a shorter lease than the server would grant; 0 for what it grants.
        lease: told how long the session's lease is certain to last.
    """
    session = NamesSession(find, client, holds, on_push, on_lease_lost, lease_s, lease or Lease())
    return _SessionManager(session)


class _SessionManager(AbstractAsyncContextManager[NamesSession]):
    """Runs the session's tasks; lets the block's own exception through unwrapped."""

    def __init__(self, session: NamesSession) -> None:
        self._session = session
        self._manager = trio.open_nursery()
        self._nursery: trio.Nursery | None = None

    async def __aenter__(self) -> NamesSession:
        nursery = self._nursery = await self._manager.__aenter__()
        self._session.start(nursery)
        return self._session

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._nursery is not None
        try:
            await self._session.close()
        finally:
            self._nursery.cancel_scope.cancel()
            if isinstance(exc, trio.Cancelled):
                await self._manager.__aexit__(kind, exc, traceback)
            else:
                await self._manager.__aexit__(None, None, None)
