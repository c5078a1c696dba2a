"""A file that is being written."""

from __future__ import annotations

import os

from fdfs_storage.files import write_all


class NewFile:
    """A file that is being written and has no name yet. Close it in any case.

    Closing leaves nothing behind unless the file was given a name (`Creations.commit`).

    Attributes:
        fd: its descriptor; may be written in a thread.
        path_index: the store path that it is on.
        directory: that of its `Location`.
        temporary: the path of a temporary name, where files without a name are not possible.
        content: the whole content if it was written by `write`, else None.
    """

    __slots__ = ("content", "directory", "fd", "path_index", "temporary")

    def __init__(self, fd: int, path_index: int, directory: str, temporary: str = "") -> None:
        self.fd = fd
        self.path_index = path_index
        self.directory = directory
        self.temporary = temporary
        self.content: bytes | memoryview | None = None

    def write(self, data: bytes | memoryview) -> None:
        """Write *data*, which is all of the content and does not change. Raises OSError."""
        write_all(self.fd, data)
        self.content = data

    def close(self) -> None:
        """Close the descriptor; content that was not committed is gone."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
            if self.temporary:
                os.unlink(self.temporary)
