"""Writers on a mount, and what was acknowledged to them; the program is mount_writer.py."""

from __future__ import annotations

import subprocess
import sys
import threading
import zlib
from pathlib import Path

from tests.common.waiting import wait_until


class MountWriter:
    """The program tests/common/mount_writer.py and what it has told so far."""

    def __init__(self, directory: Path, seed: int) -> None:
        self.directory = directory
        self.files: dict[str, tuple[int, int]] = {}
        self.count = 0
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.common.mount_writer", str(directory), str(seed)],
            stdout=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if not line.endswith("\n"):
                break  # it was killed in the middle
            what, name, *rest = line.split()
            if what == "w":
                self.files[name] = int(rest[0]), int(rest[1])
            elif what == "m":
                self.files[rest[0]] = self.files.pop(name)
            else:
                self.files.pop(name, None)
            self.count += 1

    def wait_growth(self, more: int) -> None:
        """Wait until that many further operations were acknowledged."""
        wanted = self.count + more
        wait_until(lambda: self.count >= wanted, "the writer to go on", timeout_s=120)

    def stop(self) -> None:
        """End it between two lines or in the middle of a file."""
        assert self._process.poll() is None, "the writer met an error"
        self._process.kill()
        self._process.wait()
        self._reader.join()
        assert self._process.stdout is not None
        self._process.stdout.close()

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
