"""Finding the storage that keeps a group's tree."""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple, TypeAlias

import trio

from fdfsfuse.client.address import Address
from fdfsfuse.client.connection import connect
from fdfsfuse.errors import ConnectionProblem, FdfsError, NoNamesError, NoTreeError, StatusError
from fdfsfuse.proto import names, structs

QUERY_TIMEOUT_S = 2.0
GRACE_S = 0.2
"""How long other storages may still answer once one has told a view."""
VIEW_MAX = 16 << 10


class Candidate(NamedTuple):
    """A storage of the group."""

    storage_id: str
    address: Address


Finder: TypeAlias = Callable[[], Awaitable[Sequence[Candidate]]]
"""Gives the group's storages as the trackers know them (command 92)."""


class Found(NamedTuple):
    """The newest view that any storage told, and where its primary is."""

    view: names.View
    primary: Candidate


async def query_view(address: Address) -> names.View:
    """Ask one storage for its view.

    Raises:
        NoNamesError: it is a server without names.
        StatusError: 2, it has no tree (yet).
        ConnectionProblem: it was not reached within `QUERY_TIMEOUT_S`.
    """
    with trio.move_on_after(QUERY_TIMEOUT_S):
        connection = await connect(address, QUERY_TIMEOUT_S)
        try:
            body = await connection.request(names.QUERY_VIEW, max_answer=VIEW_MAX)
        except StatusError as exc:
            if exc.errno == errno.EINVAL:
                raise NoNamesError(f"{address} is a FastDFS server without names") from exc
            raise
        finally:
            connection.close()
        return structs.decode(names.View, body)
    raise ConnectionProblem(f"{address} did not answer within {QUERY_TIMEOUT_S:g} s")


async def find_primary(find: Finder) -> Found:
    """Ask all storages of the group for their view and return the newest.

    Raises:
        NoNamesError: all storages answered, at least one of them has no names at all, and no
            other one has a tree.
        ConnectionProblem: no tree was found; the text says why. NoTreeError: as all that there are
            of ours have answered that they have none.
    """
    candidates = await find()
    views: list[names.View] = []
    problems: list[FdfsError] = []
    scope = trio.CancelScope()

    async def ask(candidate: Candidate) -> None:
        try:
            views.append(await query_view(candidate.address))
        except FdfsError as exc:
            problems.append(exc)
        else:
            scope.deadline = min(scope.deadline, trio.current_time() + GRACE_S)

    with scope:
        async with trio.open_nursery() as nursery:
            for candidate in candidates:
                nursery.start_soon(ask, candidate)
    if not views:
        raise _no_view(problems)
    newest = max(views, key=lambda view: view.number)
    for candidate in candidates:
        if candidate.storage_id == newest.primary:
            return Found(newest, candidate)
    raise ConnectionProblem(f"the trackers do not know the names primary {newest.primary}")


def _no_view(problems: list[FdfsError]) -> FdfsError:
    answers = [p for p in problems if isinstance(p, (NoNamesError, StatusError))]
    stock = [p for p in answers if isinstance(p, NoNamesError)]
    if stock and len(answers) == len(problems):
        return stock[0]
    if not problems:
        return ConnectionProblem("the trackers know no storage of this volume")
    without = [p for p in answers if p.errno == errno.ENOENT]
    if without:
        kind = NoTreeError if len(without) == len(problems) else ConnectionProblem
        return kind("no storage of this volume has its directory tree")
    return ConnectionProblem(str(problems[0]))
