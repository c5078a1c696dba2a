"""Programs of the tests that print a line for each thing that they have done."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable

from tests.common.waiting import wait_until


class Reporting:
    """A module that runs as a program; *take* is called with its lines, in a thread.

    Attributes:
        count: lines so far.
    """

    def __init__(self, take: Callable[[str], None], module: str, *arguments: object) -> None:
        self.count = 0
        self._take = take
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *map(str, arguments)],
            stdin=subprocess.PIPE,
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
            self._take(line)
            self.count += 1

    def wait_growth(self, more: int) -> None:
        """Wait until it has done that many further things, or has ended."""
        wanted = self.count + more
        wait_until(
            lambda: self.count >= wanted or self._process.poll() is not None,
            "the program to go on",
            timeout_s=120,
        )

    def kill(self) -> None:
        """End it between two lines or in the middle of something."""
        assert self._process.poll() is None, "the program met an error"
        with self._process:
            self._process.kill()
            self._reader.join()

    def end(self) -> None:
        """Tell it to end, by the end of its input."""
        assert self._process.stdin is not None
        with self._process:
            self._process.stdin.close()
            self._reader.join()
        assert self._process.returncode == 0
