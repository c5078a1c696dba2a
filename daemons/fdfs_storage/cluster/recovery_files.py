"""The files of a recovery in ``STORE_PATH/data``; formats: `fdfsfuse.proto.recovery`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from fdfs_storage.files import replace_file, sync_directory
from fdfsfuse.proto.recovery import (
    FLAG_NAME,
    LIST_PREFIX,
    MARK_PREFIX,
    RecoveryFlag,
    decode_mark,
    encode_mark,
)


class RecoveryFiles:
    """One store path. A recovery is under way as long as the flag is there."""

    def __init__(self, store_path: str) -> None:
        self.data = Path(store_path, "data")
        self._flag_path = self.data / FLAG_NAME

    @property
    def under_way(self) -> bool:
        """Whether a recovery has begun and not ended."""
        return self._flag_path.exists()

    def begin(self) -> None:
        """Note that files are missing here, before anything else is in the directory."""
        self.data.mkdir(parents=True, exist_ok=True)
        self.write_flag(RecoveryFlag())

    def read_flag(self) -> RecoveryFlag:
        """How far it has come."""
        return RecoveryFlag.decode(self._flag_path.read_bytes())

    def write_flag(self, flag: RecoveryFlag) -> None:
        """Note how far it has come, so that a crash does not lose it."""
        replace_file(self._flag_path, flag.encode(), sync=True)

    def list_path(self, part: int) -> Path:
        """The list, or a part of it."""
        return self.data / f"{LIST_PREFIX}{part}"

    def open_list(self) -> IO[bytes]:
        """The list, to be written anew."""
        return open(self.list_path(0), "wb")

    def read_mark(self, part: int) -> int:
        """How many bytes of a part of the list are done."""
        try:
            return decode_mark((self.data / f"{MARK_PREFIX}{part}").read_bytes())
        except FileNotFoundError:
            return 0

    def write_mark(self, part: int, offset: int) -> None:
        """Note how much is done. What is done survives the loss of power before its mark does."""
        os.sync()
        replace_file(self.data / f"{MARK_PREFIX}{part}", encode_mark(offset), sync=True)

    def lines(self, part: int, offset: int) -> Iterator[tuple[bytes, int]]:
        """The lines of a part of the list from *offset* on, each with the offset behind it."""
        with open(self.list_path(part), "rb") as file:
            file.seek(offset)
            for line in file:
                offset += len(line)
                yield line, offset

    def end(self) -> None:
        """Everything is here: remove the files, the flag last."""
        os.sync()
        for prefix in (LIST_PREFIX, MARK_PREFIX):
            for path in self.data.glob(f"{prefix}*"):
                path.unlink()
        self._flag_path.unlink()
        sync_directory(self.data)
