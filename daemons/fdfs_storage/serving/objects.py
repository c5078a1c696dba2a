"""Answers to requests about objects that carry no content: delete, metadata, info, truncate.

Source: protocol/wire.md section 4, in its order of checks. Each handler takes a whole body and
returns the whole response. ProtocolError stands for status 22; StatusError for its status.
"""

from __future__ import annotations

import errno
import functools
import os
import stat
from collections.abc import Callable

import trio

from fdfs_storage.files import status_of
from fdfs_storage.store import Store
from fdfs_storage.transfer import INLINE_MAX, file_crc32
from fdfsfuse.errors import ProtocolError, StatusError
from fdfsfuse.proto import metadata
from fdfsfuse.proto.fileid import (
    FileKind,
    Location,
    UsualFields,
    decode_name,
    decode_source,
    origin_of,
)
from fdfsfuse.proto.header import pack_response, pack_text
from fdfsfuse.proto.storage import NO_CRC, FileRequest, SetMetadata, Truncate, file_info_packer

_OK = pack_response()


class Objects:
    """Handlers over one store; see `fdfs_storage.serving.service` for the arguments."""

    def __init__(
        self, store: Store, group: str, ip_size: int, source_ip: Callable[[str], str]
    ) -> None:
        self._store = store
        self._group = group
        self._usual = UsualFields(group, store.path_count)
        self._pack_info = file_info_packer(ip_size)
        # Few sources, many questions: the packed field of each is kept.
        self._ip_field = functools.lru_cache(maxsize=1024)(
            lambda source: pack_text(source_ip(decode_source(source)[0]), ip_size)
        )

    def _locate(self, body: bytes) -> Location:
        """The file that a `FileRequest` is about; the usual ones need not be decoded for that."""
        return self._usual.locate(body, 0) or self._locate_in(FileRequest.decode(body))

    def _locate_in(self, request: FileRequest | SetMetadata) -> Location:
        if request.group != self._group:
            raise ProtocolError(f"group {request.group!r} is not ours")
        return self._store.locate(request.name)

    def delete(self, body: bytes, _flags: int) -> bytes:
        """12: the object and its metadata."""
        location = self._locate(body)
        counters = self._store.counters
        counters.total_delete_count += 1
        self._store.delete(location)
        counters.success_delete_count += 1
        return _OK

    def get_metadata(self, body: bytes, _flags: int) -> bytes:
        """15: status 2 both for no object and for no metadata."""
        location = self._locate(body)
        counters = self._store.counters
        counters.total_get_meta_count += 1
        text = self._store.read_metadata(location)
        if not text or not self._store.exists(location):
            raise StatusError(errno.ENOENT)
        counters.success_get_meta_count += 1
        return pack_response(text)

    def set_metadata(self, body: bytes, _flags: int) -> bytes:
        """13: overwrite or merge. What is stored is always clean and sorted."""
        request = SetMetadata.decode(body)
        location = self._locate_in(request)
        store = self._store
        store.counters.total_set_meta_count += 1
        if not store.exists(location):
            raise StatusError(errno.ENOENT)
        pairs = metadata.decode(request.text)
        if request.merge:
            if pairs:
                old = store.read_metadata(location)
                if old:
                    pairs = metadata.merge(metadata.decode(old), pairs)
                store.write_metadata(location, metadata.encode(pairs))
        else:
            store.write_metadata(location, metadata.encode(pairs))
        store.counters.success_set_meta_count += 1
        return _OK

    def file_info(self, body: bytes, flags: int) -> bytes | None:
        """22; None when the crc has to be computed from the content."""
        location = self._locate(body)
        status = self._store.stat(location)
        source, crc = origin_of(location)
        if crc is None:
            if flags & NO_CRC:
                crc = 0
            elif status.st_size <= INLINE_MAX:
                crc = self._crc32(location)
            else:
                return None
        return self._pack_info(status.st_size, int(status.st_mtime), crc, self._ip_field(source))

    async def file_info_with_crc(self, body: bytes, _flags: int) -> bytes:
        """22 for a large appender or slave."""
        location = self._locate(body)
        status = self._store.stat(location)
        source, _ = origin_of(location)
        crc = await trio.to_thread.run_sync(self._crc32, location)
        return self._pack_info(status.st_size, int(status.st_mtime), crc, self._ip_field(source))

    def _crc32(self, location: Location) -> int:
        try:
            return file_crc32(self._store.path(location))
        except IsADirectoryError as exc:
            raise StatusError(errno.EINVAL) from exc
        except OSError as exc:
            raise StatusError(status_of(exc)) from exc

    def truncate(self, body: bytes, _flags: int) -> bytes | None:
        """36; None while an append or a modification of the file is under way."""
        request = Truncate.decode(body)
        location = self._store.locate(request.name)
        check_appender(self._store, location)
        if not self._store.locks.is_free(location):
            return None
        counters = self._store.counters
        counters.total_truncate_count += 1
        self._store.appenders.truncate(location, request.size)
        counters.success_truncate_count += 1
        return _OK

    async def truncate_when_free(self, body: bytes, _flags: int) -> bytes:
        """36, once the change that is under way has ended."""
        request = Truncate.decode(body)
        location = self._store.locate(request.name)
        async with self._store.locks.hold(location):
            self._store.appenders.truncate(location, request.size)
        return _OK


def check_appender(store: Store, location: Location) -> int:
    """Check that an existing file may be appended to, modified, truncated; returns its size.

    Raises:
        StatusError: 2 it does not exist, 22 it is no regular file or no appender.
    """
    try:
        # Not through a link: it may have the name of an appender's slave, and point to a file
        # that never changes.
        status = os.lstat(store.path(location))
    except FileNotFoundError:
        status = None
    except OSError as exc:
        raise StatusError(status_of(exc)) from exc
    if status is None or not stat.S_ISREG(status.st_mode):
        store.stat(location)  # raises, unless it is in a trunk file or behind a link
        raise StatusError(errno.EINVAL, "not a regular file")
    if decode_name(location.name).kind is not FileKind.APPENDER:
        raise StatusError(errno.EINVAL, "not an appender")
    return status.st_size
