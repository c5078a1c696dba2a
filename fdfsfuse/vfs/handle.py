"""One open() of a file: how it writes, and what it has read ahead."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fdfsfuse.vfs.context import Context
from fdfsfuse.vfs.readahead import Buffers, ObjectReader

if TYPE_CHECKING:
    from fdfsfuse.vfs.files import FileState


class Handle:
    """See the module. ``append``: it was opened with O_APPEND."""

    __slots__ = ("_buffers", "_context", "_reader", "append", "state")

    def __init__(
        self, context: Context, state: FileState, buffers: Buffers, *, append: bool = False
    ) -> None:
        self._context = context
        self._buffers = buffers
        self._reader: ObjectReader | None = None
        self.append = append
        self.state = state

    def reader(self, file_id: str, size: int) -> ObjectReader:
        """The reader for this object, of *size* bytes, in the version that ``state`` has now."""
        reader = self._reader
        version = self.state.attr.version
        if reader is not None:
            if (reader.file_id, reader.version, reader.size) == (file_id, version, size):
                return reader
            reader.close()
        volume = self.state.volume
        reader = ObjectReader(self._context, volume, self._buffers, file_id, version, size)
        self._reader = reader
        return reader

    def drop_reader(self) -> None:
        """Drop what was read ahead."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None
