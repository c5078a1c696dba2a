"""Writers on a mount, and what was acknowledged to them; the program is mount_writer.py."""

from __future__ import annotations

import zlib
from pathlib import Path

from tests.common.reporting import Reporting


class MountWriter(Reporting):
    """The program tests/common/mount_writer.py and what it has told so far."""

    def __init__(self, directory: Path, seed: int) -> None:
        self.directory = directory
        self.files: dict[str, tuple[int, int]] = {}
        super().__init__(self._note, "tests.common.mount_writer", directory, seed)

    def _note(self, line: str) -> None:
        what, name, *rest = line.split()
        if what == "w":
            self.files[name] = int(rest[0]), int(rest[1])
        elif what == "m":
            self.files[rest[0]] = self.files.pop(name)
        else:
            self.files.pop(name, None)

    def check(self) -> None:
        """Everything acknowledged is there; one file may have been under way."""
        found = {}
        for path in self.directory.iterdir():
            data = path.read_bytes()
            found[path.name] = len(data), zlib.crc32(data)
        wrong = {
            name for name in found.keys() | self.files if found.get(name) != self.files.get(name)
        }
        assert len(wrong) <= 2, {name: (found.get(name), self.files.get(name)) for name in wrong}
