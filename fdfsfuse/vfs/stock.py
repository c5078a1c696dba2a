"""A volume of stock FastDFS servers: no names, but every object by its id, to be read.

Objects are listed by command 26, which tells all files of a store path at once: such a list is kept
for a while. Everything else is what clients of FastDFS do. What only a tree can do ends with
NoNamesError.
"""

from __future__ import annotations

import bisect
import errno
import stat
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import trio

from fdfsfuse.client.address import Address
from fdfsfuse.client.connection import Connection, connect
from fdfsfuse.client.pool import Pool
from fdfsfuse.client.storage import StorageClient
from fdfsfuse.client.tracker import TrackerClient
from fdfsfuse.errors import (
    ConnectionBroken,
    ConnectionProblem,
    NoNamesError,
    ProtocolError,
    StatusError,
)
from fdfsfuse.proto import fileid, metadata, names
from fdfsfuse.proto.binlog import decode_line
from fdfsfuse.proto.names import Attr
from fdfsfuse.proto.recovery import COUNT_SIZE, FETCH_PATH_BINLOG, PathBinlogRequest
from fdfsfuse.proto.storage import NO_CRC, FileRequest, StorageCommand

_T = TypeVar("_T")

_LIST_AGE_S = 30.0
"""How old a list of objects may be."""
_LIST_MAX = 2_000_000
"""Objects of a store path that are listed at all: each takes some 100 bytes of memory."""
_MIB = 1 << 20
_MODE = stat.S_IFREG | 0o644
_ROOT = Attr(names.ROOT_INO, stat.S_IFDIR | 0o555, 2, 0, 0, 0, 0, 0, 0, 0, 0)


class StockVolume:
    """The objects of one group."""

    def __init__(self, group: str, trackers: TrackerClient, pool: Pool) -> None:
        self._group = group
        self._trackers = trackers
        self._pool = pool
        self._listing = trio.Lock()
        self._lists: dict[int, tuple[float, list[str]]] = {}
        """By store path: when it was told (trio time), and its file ids, sorted."""
        self._answers: dict[type, Callable[[Any], Awaitable[Any]]] = {
            names.GetAttr: self._root,
            names.ReadDir: self._no_names,
            names.Lookup: self._no_name,
            names.KeepAlive: self._done,
            names.Holds: self._done,
            names.StatFs: self._space,
            names.LookupObject: self._lookup,
            names.ListObjects: self._list,
            names.ListXattrs: self._xattrs,
        }

    async def call(self, request: names.Request) -> Any:
        """The answer to a names request. Raises NoNamesError for those that need a tree."""
        answer = self._answers.get(type(request))
        if answer is None:
            raise NoNamesError(f"the storages of {self._group} are FastDFS servers without names")
        return await answer(request)

    # --- objects ------------------------------------------------------------------------------

    async def read(self, file_id: str, exchange: Callable[[Connection], Awaitable[_T]]) -> _T:
        """Carry out *exchange* with a storage that has the object."""
        address = await self._trackers.query_fetch(self._group, file_id)
        return await self._pool.call(address, exchange, repeatable=True)

    async def changer(self, file_id: str) -> Address:
        """The storage that changes the object."""
        return await self._trackers.query_update(self._group, file_id)

    async def _lookup(self, request: names.LookupObject) -> Attr:
        file_id = request.file_id
        address = await self._trackers.query_fetch(self._group, file_id)
        info = await StorageClient(self._pool, address).query_info(
            self._group, file_id, flags=NO_CRC
        )
        return _attr(file_id, info.size, info.mtime)

    async def _xattrs(self, request: names.ListXattrs) -> names.Xattrs:
        if not request.file_id:
            return names.Xattrs({})
        body = FileRequest(self._group, request.file_id).encode()

        async def exchange(connection: Connection) -> bytes:
            return await connection.request(StorageCommand.GET_METADATA, body)

        address = await self.changer(request.file_id)
        try:
            text = await self._pool.call(address, exchange, repeatable=True)
        except StatusError as exc:
            if exc.errno != errno.ENOENT:
                raise
            text = b""  # there is none
        return names.Xattrs({b"user." + name: value for name, value in metadata.decode(text)})

    # --- listings -----------------------------------------------------------------------------

    async def _list(self, request: names.ListObjects) -> names.ObjectListing:
        """Directories with objects, or the objects of a directory."""
        if not request.path:
            (group,) = [g for g in await self._trackers.list_groups() if g.group == self._group]
            paths = [f"M{index:02X}" for index in range(group.store_path_count)]
            entries = [names.ObjectEntry(path) for path in paths if path > request.after]
            return names.ObjectListing(entries[: request.limit], len(entries) <= request.limit)
        known = await self._objects(int(request.path[1:3], 16))
        prefix = request.path + "/"
        found: list[names.ObjectEntry] = []
        at = bisect.bisect_left(known, prefix)
        if request.after:
            # Behind all that begins so: "0" is the character after "/".
            end = "0" if len(prefix) < len("M00/00/00/") else "\0"
            at = bisect.bisect_left(known, prefix + request.after + end)
        while at < len(known) and known[at].startswith(prefix) and len(found) < request.limit:
            name = known[at][len(prefix) :].partition("/")[0]
            if len(prefix) < len("M00/00/00/"):
                found.append(names.ObjectEntry(name))
                at = bisect.bisect_left(known, f"{prefix}{name}0")
            else:
                found.append(names.ObjectEntry(name, await self._listed(known[at])))
                at += 1
        return names.ObjectListing(found, at >= len(known) or not known[at].startswith(prefix))

    async def _listed(self, file_id: str) -> Attr | None:
        """Attributes of a listed object; None when it is gone."""
        info = fileid.decode_name(file_id)
        if info.kind is fileid.FileKind.NORMAL:
            return _attr(file_id, info.size, info.timestamp)
        try:
            return await self._lookup(names.LookupObject(file_id))
        except StatusError as exc:
            if exc.errno != errno.ENOENT:
                raise
            return None

    async def _objects(self, path_index: int) -> list[str]:
        """All objects of a store path, as a list that may be somewhat old."""
        async with self._listing:
            told_at, known = self._lists.get(path_index, (-_LIST_AGE_S, []))
            if trio.current_time() - told_at < _LIST_AGE_S:
                return known
            problem: Exception = ConnectionBroken(f"no storage of {self._group} is known")
            for candidate in await self._trackers.find_candidates(self._group):
                try:
                    known = await self._fetch_list(candidate.address, path_index)
                except (ConnectionProblem, ProtocolError, StatusError) as exc:
                    problem = exc
                    continue
                self._lists[path_index] = trio.current_time(), known
                return known
            raise problem

    async def _fetch_list(self, address: Address, path_index: int) -> list[str]:
        """26: lines of the binlog, their length as 8 bytes, and the end of the connection."""
        connection = await connect(address)
        found: set[str] = set()
        text, tail, size = b"", b"", 0
        try:
            body = PathBinlogRequest(self._group, path_index).encode()
            stream = await connection.start_stream(FETCH_PATH_BINLOG, body)
            try:
                while data := await stream.receive_some():
                    tail += data
                    data, tail = tail[:-COUNT_SIZE], tail[-COUNT_SIZE:]
                    size += len(data)
                    *lines, text = (text + data).split(b"\n")
                    found.update(name for line in lines if (name := _object_of(line)))
                    if len(found) > _LIST_MAX:
                        raise StatusError(errno.EFBIG, f"more than {_LIST_MAX} objects")
            except ConnectionBroken:
                pass  # that is how it ends
        finally:
            connection.close()
        if int.from_bytes(tail, "big") != size or len(tail) != COUNT_SIZE:
            raise ProtocolError(f"the list of {address} is not complete")
        return sorted(found)

    # --- what there is no tree for ------------------------------------------------------------

    async def _root(self, request: names.GetAttr) -> Attr:
        await trio.lowlevel.checkpoint()
        if request.ino != names.ROOT_INO:
            raise StatusError(errno.ENOENT)
        return _ROOT

    async def _no_names(self, _request: names.ReadDir) -> names.Listing:
        await trio.lowlevel.checkpoint()
        return names.Listing([], True)

    async def _no_name(self, _request: names.Lookup) -> Attr:
        await trio.lowlevel.checkpoint()
        raise StatusError(errno.ENOENT)

    async def _done(self, _request: names.Request) -> names.Done:
        await trio.lowlevel.checkpoint()
        return names.Done()

    async def _space(self, _request: names.StatFs) -> names.Space:
        for group in await self._trackers.list_groups():
            if group.group == self._group:
                free_mb = max(0, group.free_mb - group.reserved_mb)
                return names.Space(group.total_mb * _MIB, group.free_mb * _MIB, free_mb * _MIB, 0)
        raise StatusError(errno.ENOENT)


def _attr(file_id: str, size: int, mtime: int) -> Attr:
    time_ns = mtime * 10**9
    return Attr(0, _MODE, 1, 0, 0, 0, size, time_ns, time_ns, time_ns, 0, file_id)


def _object_of(line: bytes) -> str:
    """The object that a line of a list tells of, '' for other files."""
    try:
        name = decode_line(line).name
        location = fileid.parse_location(name, 256)
    except ProtocolError:
        return ""
    return name if location.name == name and fileid.is_object_base(location.base) else ""
