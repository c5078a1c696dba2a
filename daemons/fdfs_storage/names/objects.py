"""The objects of a volume as the names engine uses them: a thin layer over the storage's `Store`.

Here file ids (``M00/00/0C/...``) become locations, checked on the way, and here the engine's own
names are kept apart from those of plain clients: a name is *in flight* from the moment it is
drawn, always inside a batch, until the end of that batch, and is shown to nobody until then.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Sequence
from typing import Final

from isal import isal_zlib

from fdfs_storage.names.checks import fail
from fdfs_storage.store import Store
from fdfsfuse.errors import ProtocolError, StatusError
from fdfsfuse.proto.fileid import (
    FileKind,
    Location,
    decode_name,
    is_object_base,
    parse_location,
    time_of_name,
)

_EXTENSION: Final = re.compile(rb"[^/]+\.([A-Za-z0-9]{1,6})\Z")
NS: Final = 10**9
_LOCATED_MAX: Final = 1024
_BARE_MAX: Final = 16_384


def extension_of(name: bytes) -> str:
    """The extension that the object of a file called *name* gets, '' for none."""
    match = _EXTENSION.match(name)
    return match[1].decode("ascii") if match else ""


class Objects:
    """Objects by file id.

    Attributes:
        own: true while the store is told to change something by us, for its observers.
        in_flight: names that were drawn for changes which are not committed yet.
        store: where the files are.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.own = False
        self._as_own = _AsOwn(self)
        self.in_flight: set[str] = set()
        self._metadata: dict[str, bytes] = {}
        # Checking a name costs 15 us, and each WRITE_OBJECT asks for the same few again and again.
        self._located: dict[str, Location] = {}
        # Of objects that were made lately and have no metadata, nobody looks for any: a mount that
        # overwrites small files would otherwise open a file that is not there each time.
        self._bare: set[str] = set()

    def locate(self, file_id: str) -> Location:
        """Where an object is. EINVAL when that cannot be the file name of one."""
        location = self._located.get(file_id)
        if location is not None:
            return location
        try:
            location = parse_location(file_id, self.store.path_count)
        except ProtocolError as exc:
            raise fail(errno.EINVAL, str(exc)) from None
        if not is_object_base(location.base) or location.name != file_id:
            raise fail(errno.EINVAL, "file name")
        self._remember(location)
        return location

    def _remember(self, location: Location) -> None:
        if len(self._located) >= _LOCATED_MAX:
            self._located.clear()
        self._located[location.name] = location

    def path(self, file_id: str) -> str:
        """The path of the object's file."""
        return self.store.path(self.locate(file_id))

    def stat(self, file_id: str) -> os.stat_result:
        """The object's file. ENOENT when there is no such regular file."""
        result = self.store.stat(self.locate(file_id))
        if not stat.S_ISREG(result.st_mode):
            raise fail(errno.ENOENT)
        return result

    def is_appender(self, file_id: str) -> bool:
        """True when the object may be changed in place."""
        return decode_name(file_id).kind is FileKind.APPENDER

    # --- making -----------------------------------------------------------------------------

    def draw(self, data: bytes, now_ns: int, extension: str) -> str:
        """A new name, in flight from now on, for an object of that content.

        It tells when the object was made, not what time its file was given: by that, and by the
        time in the binlog, FastDFS judges which servers have an object already.
        """
        location = self.store.creations.make_name(
            len(data), isal_zlib.crc32(data), now_ns // NS, extension
        )
        self._remember(location)
        self.in_flight.add(location.name)
        return location.name

    def draw_appender(self, now_ns: int, extension: str) -> str:
        """A new name, in flight from now on, for an appender."""
        location = self.store.creations.make_name(0, 0, now_ns // NS, extension, appender=True)
        self.in_flight.add(location.name)
        return location.name

    def announce(self, contents: Sequence[tuple[str, bytes]]) -> None:
        """Let peers have new objects (name, content), made next; their records are in the log.

        Raises:
            StatusError: 28, 5; then no peer gets any.
        """
        with self._as_own:
            self.store.creations.announce(
                [(self.locate(i), data, time_of_name(i)) for i, data in contents]
            )

    def make(self, file_id: str, data: bytes) -> None:
        """Make an object that was announced."""
        with self._as_own:
            self.store.creations.make(self.locate(file_id), data, time_of_name(file_id))
        if len(self._bare) >= _BARE_MAX:
            self._bare.clear()
        self._bare.add(file_id)

    def withdraw(self, file_id: str) -> None:
        """Take back an object that was announced, whether it was made or not."""
        self._bare.discard(file_id)
        with self._as_own:
            self.store.creations.withdraw(self.locate(file_id))

    def write_again(self, file_id: str, data: bytes) -> None:
        """Make an object that a crash has damaged, or kept from being made.

        It is not deleted before: that would take its metadata along, and concern the peers.
        """
        location = self.locate(file_id)
        with self._as_own:
            self.store.remove(location)
            self.store.creations.write_at(location, data, time_of_name(file_id))

    def holds(self, file_id: str, data: bytes) -> bool:
        """True when the object's file has exactly this content."""
        try:
            with open(self.path(file_id), "rb") as file:
                return file.read(len(data) + 1) == data
        except FileNotFoundError:
            return False

    def exists(self, file_id: str) -> bool:
        """True when there is a file of that name."""
        return self.store.exists(self.locate(file_id))

    def create_empty(self, file_id: str) -> None:
        """Make an empty appender; its record is durable."""
        with self._as_own:
            self.store.creations.create_empty(self.locate(file_id))

    def delete(self, file_id: str) -> None:
        """Delete the object and its metadata; fine when it is gone already."""
        self._bare.discard(file_id)
        try:
            with self._as_own:
                self.store.delete(self.locate(file_id))
        except StatusError as exc:
            if exc.errno != errno.ENOENT:
                raise
            # A crash in the middle of a deletion leaves the metadata behind.
            self.put_metadata(file_id, b"")

    # --- metadata ---------------------------------------------------------------------------

    def metadata(self, file_id: str) -> bytes:
        """The metadata text, as it will be once the changes of the open batch are done."""
        text = self._metadata.get(file_id)
        if text is None:
            text = self.stored_metadata(file_id)
        return text

    def stored_metadata(self, file_id: str) -> bytes:
        """The metadata text of the object; '' for none."""
        if file_id in self._bare:
            return b""
        try:
            return self.store.read_metadata(self.locate(file_id)) or b""
        except StatusError as exc:
            if exc.errno != errno.ENOENT:
                raise
            return b""

    def plan_metadata(self, file_id: str, text: bytes) -> None:
        """Note the metadata text that a change of the open batch gives to the object."""
        self._metadata[file_id] = text

    def put_planned(self, file_id: str) -> None:
        """Give the object the metadata text that the open batch leads to, unless it has it."""
        text = self._metadata.pop(file_id, None)
        if text is not None:
            self.put_metadata(file_id, text)

    def put_metadata(self, file_id: str, text: bytes) -> None:
        """Replace the metadata text if it is another one; it is in the log."""
        if text != self.stored_metadata(file_id):
            self._bare.discard(file_id)
            with self._as_own:
                self.store.write_metadata(self.locate(file_id), text, kept=True)

    def metadata_changed(self, file_id: str) -> None:
        """Somebody else has changed the metadata of the object."""
        self._bare.discard(file_id)

    def pwrite_pieces(
        self, file_id: str, pieces: Sequence[tuple[int, int]], data: memoryview
    ) -> None:
        """Write to an appender, see `Appenders.pwrite_pieces`."""
        with self._as_own:
            self.store.appenders.pwrite_pieces(self.locate(file_id), pieces, data)

    def record_write(self, file_id: str, offset: int, length: int, old_size: int) -> None:
        """Log *length* bytes that were written at *offset* when the object had *old_size*."""
        with self._as_own:
            self.store.appenders.record_write(self.locate(file_id), offset, length, old_size)

    def truncate(self, file_id: str, size: int) -> None:
        """Set the size of an appender."""
        with self._as_own:
            self.store.appenders.truncate(self.locate(file_id), size)

    def end_batch(self) -> None:
        """The open batch is over: its names are in the state, or nowhere."""
        self._metadata.clear()
        self.in_flight.clear()


class _AsOwn:
    """``own`` is true while the block runs. For each small file: quicker than a generator."""

    __slots__ = ("_objects",)

    def __init__(self, objects: Objects) -> None:
        self._objects = objects

    def __enter__(self) -> None:
        self._objects.own = True

    def __exit__(self, *_: object) -> None:
        self._objects.own = False
