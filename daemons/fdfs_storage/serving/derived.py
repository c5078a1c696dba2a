"""Answers to requests that give existing content a new name (20, 38); protocol/wire.md section 4.

ProtocolError stands for status 22, StatusError for its status.
"""

from __future__ import annotations

import errno
import os
import time

import trio

from fdfs_storage.serving.objects import check_appender
from fdfs_storage.store import Store
from fdfs_storage.transfer import INLINE_MAX, file_crc32
from fdfsfuse.errors import ProtocolError, StatusError
from fdfsfuse.proto.derived import CreateLink, Regenerate
from fdfsfuse.proto.fileid import FileKind, Location, decode_name, slave_name
from fdfsfuse.proto.header import FILE_NAME_MAX, pack_response, pack_text


class Derived:
    """Handlers over one store."""

    def __init__(self, store: Store, group: str) -> None:
        self._store = store
        self._group = group
        self._group_field = pack_text(group, 16)

    def _stored(self, location: Location) -> bytes:
        return pack_response(self._group_field + location.name.encode("ascii"))

    def create_link(self, body: bytes, _flags: int) -> bytes:
        """20: a link that looks like a normal file or, with a master, like its slave."""
        request = CreateLink.decode(body)
        store = self._store
        if request.group != self._group:
            raise ProtocolError(f"group {request.group!r} is not ours")
        source = store.locate(request.source)
        master = store.locate(request.master) if request.master else None
        counters = store.counters
        counters.total_create_link_count += 1
        size = store.stat(source).st_size
        if master is None:
            location = self._plain_link(source, size, request.extension)
        else:
            location = slave_location(store, master, request.prefix, request.extension)
        store.link(location, source)
        counters.success_create_link_count += 1
        return self._stored(location)

    def _plain_link(self, source: Location, size: int, extension: str) -> Location:
        # The reference puts a random number where the CRC-32 belongs. With the one of the content
        # downloads of the link can be verified too; an appender's will not stay what it is.
        info = decode_name(source.name)
        crc = info.crc32 if info.kind is FileKind.NORMAL else int.from_bytes(os.urandom(4), "big")
        return self._store.creations.make_name(
            size, crc, int(time.time()), extension, path_index=source.path_index, takes_space=False
        )

    def regenerate(self, body: bytes, _flags: int) -> bytes | None:
        """38: an appender becomes a normal file; None when it is large or being changed."""
        location = self._appender(body)
        size = check_appender(self._store, location)
        if size > INLINE_MAX or not self._store.locks.is_free(location):
            return None
        return self._rename(location, size, file_crc32(self._store.path(location)))

    async def regenerate_large(self, body: bytes, _flags: int) -> bytes:
        """38, with the content read in a thread, once changes that are under way have ended."""
        store, location = self._store, self._appender(body)
        async with store.locks.hold(location):
            size = check_appender(store, location)
            crc = await trio.to_thread.run_sync(file_crc32, store.path(location))
            return self._rename(location, size, crc)

    def _appender(self, body: bytes) -> Location:
        location = self._store.locate(Regenerate.decode(body).name)
        if decode_name(location.name).kind is not FileKind.APPENDER:
            raise ProtocolError("not an appender")
        return location

    def _rename(self, old: Location, size: int, crc: int) -> bytes:
        new = self._store.creations.make_normal_name(old, size, crc, int(time.time()))
        self._store.rename(old, new)
        return self._stored(new)


def slave_location(store: Store, master: Location, prefix: str, extension: str) -> Location:
    """Where the slave of an existing *master* goes.

    Raises:
        StatusError: 2 there is no master, 17 there is such a slave.
        ProtocolError: no slave can have this name.
    """
    if not store.exists(master):
        raise StatusError(errno.ENOENT)
    if len(master.relative) < 34 or (prefix == "-m" and not extension):
        raise ProtocolError("no slave can have this name")
    name = slave_name(master.name, prefix, extension)
    if len(name) > FILE_NAME_MAX:
        raise ProtocolError("the slave's name would be too long")
    location = store.locate(name)
    if store.exists(location):
        raise StatusError(errno.EEXIST)
    return location
