"""Real programs as child processes of a test: readiness, logs, signals, cleanup by pid.

Start processes from the main thread only: they are told to die with the thread that started
them, so that an interrupted test run leaves nothing behind.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sysconfig
import threading
import time
from pathlib import Path
from typing import IO

from tests.common.waiting import wait_until

READY_TIMEOUT_S = 90.0
STOP_TIMEOUT_S = 60.0

BAD_LINE = re.compile(
    r"Traceback \(most recent call last\)|\b(ERROR|CRITICAL)\b|Exception ignored|"
    r"was never awaited|Fatal Python error"
)

_started: list[Process] = []


class ProcessDied(Exception):
    """A process ended although it was needed."""


def program(name: str) -> str:
    """Path of an installed command (``fdfs-trackerd``) of the environment that runs the tests."""
    path = Path(sysconfig.get_path("scripts")) / name
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: install the package into this environment")
    return str(path)


class Process:
    """One program with its log file (standard output and error) and its sd_notify socket.

    ``allow_log`` takes patterns of log lines that a test provokes on purpose.
    """

    def __init__(self, name: str, command: list[str], directory: Path) -> None:
        self.name = name
        self.command = command
        self.directory = directory
        self.log_path = directory / f"{name}.log"
        self.environment: dict[str, str] = {}
        self._allowed: list[re.Pattern[str]] = []
        self._checked = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._notify: socket.socket | None = None
        self._notified = ""

    @property
    def pid(self) -> int:
        assert self._process is not None, f"{self.name} was not started"
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self, *, notify: bool = True) -> None:
        """Start the program; with *notify*, wait until it reports READY=1.

        Raises:
            ProcessDied: it ended before. TimeoutError: it neither ended nor got ready.
        """
        self.launch()
        if notify:
            self.wait_ready()

    def launch(self) -> None:
        """Start the program and return at once."""
        assert not self.running, f"{self.name} runs already"
        assert threading.current_thread() is threading.main_thread()
        self.directory.mkdir(parents=True, exist_ok=True)
        self._close_notify()
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        # An abstract address: no file to clean up, and no limit of 108 bytes on the directory.
        self._notify.bind(f"\0fdfsfuse-test-{os.getpid()}-{id(self)}-{time.monotonic_ns()}")
        self._notify.setblocking(False)
        self._notified = ""
        address = self._notify.getsockname()
        environment = {
            **os.environ,
            "PYTHONFAULTHANDLER": "1",
            "PYTHONUNBUFFERED": "1",
            "NOTIFY_SOCKET": "@" + address[1:].decode(),
            **self.environment,
        }
        command = self.command
        if setpriv := shutil.which("setpriv"):
            command = [setpriv, "--pdeathsig", "KILL", "--", *command]
        with self._open_log() as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                cwd=self.directory,
            )
        if self not in _started:
            _started.append(self)

    def wait_ready(self, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Wait for READY=1 on the sd_notify socket, or for the end of the process."""

        def ready() -> bool:
            if "READY=1" in self.notified().split("\n"):
                return True
            if not self.running:
                raise ProcessDied(f"{self.name} ended with {self.wait()}:\n{self.log_tail()}")
            return False

        try:
            wait_until(ready, f"{self.name} to be ready", timeout_s=timeout_s)
        except TimeoutError as exc:
            raise TimeoutError(f"{exc}\n{self.log_tail()}") from None

    def notified(self) -> str:
        """Everything that the program has told the service manager so far."""
        while self._notify is not None:
            try:
                self._notified += self._notify.recv(4096).decode() + "\n"
            except BlockingIOError:
                break
        return self._notified

    def signal(self, number: int) -> None:
        """Send a signal to the process, which must be running."""
        assert self._process is not None
        self._process.send_signal(number)

    def wait(self, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """Wait for the end and return the exit code (negative: the signal that killed it)."""
        assert self._process is not None
        try:
            code = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise TimeoutError(
                f"{self.name} did not end in {timeout_s:g} s\n{self.log_tail()}"
            ) from None
        self._close_notify()
        return code

    def terminate(self, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """SIGTERM, and the exit code."""
        self.signal(signal.SIGTERM)
        return self.wait(timeout_s)

    def kill(self) -> None:
        """SIGKILL, and wait until the kernel has cleaned up."""
        if self._process is not None:
            self._process.kill()
            self.wait()

    def stop(self) -> None:
        """Clean up: SIGTERM, then SIGKILL. Does nothing when the process has ended.

        Raises:
            ProcessDied: it did not stop by itself, or stopped with a code other than 0.
        """
        if self._process is None:
            return
        if not self.running:
            self.wait()
            return
        try:
            code = self.terminate()
        except TimeoutError as exc:
            self.kill()
            raise ProcessDied(str(exc)) from None
        if code != 0:
            raise ProcessDied(f"{self.name} stopped with {code}:\n{self.log_tail()}")

    def rss_kib(self) -> int:
        """Resident memory of the process in KiB."""
        return int(self._status("VmRSS").split()[0])

    def peak_rss_kib(self) -> int:
        """Highest resident memory so far in KiB."""
        return int(self._status("VmHWM").split()[0])

    def reset_peak_rss(self) -> None:
        """Start measuring `peak_rss_kib` again."""
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")

    def cpu_s(self) -> float:
        """CPU seconds (user and system) used so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(") ")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def _status(self, key: str) -> str:
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith(key + ":"):
                return line.partition(":")[2].strip()
        raise KeyError(key)

    def log(self) -> str:
        """The whole log."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def log_tail(self, characters: int = 6000) -> str:
        """The end of the log, for error texts."""
        text = self.log()
        return f"--- log of {self.name} ---\n{text[-characters:]}"

    def allow_log(self, pattern: str) -> None:
        """Do not complain about log lines that match *pattern* from now on."""
        self._allowed.append(re.compile(pattern))

    def new_bad_lines(self) -> list[str]:
        """Log lines since the last call that say that something went wrong."""
        text = self.log()
        # A line that is being written is looked at next time, or never when the process is dead.
        end = text.rfind("\n") + 1 if self.running else len(text)
        fresh, self._checked = text[self._checked : end], end
        return [
            f"{self.name}: {line}"
            for line in fresh.splitlines()
            if BAD_LINE.search(line) and not any(p.search(line) for p in self._allowed)
        ]

    def _open_log(self) -> IO[bytes]:
        return self.log_path.open("ab")

    def _close_notify(self) -> None:
        if self._notify is not None:
            self._notify.close()
            self._notify = None


def started_processes() -> list[Process]:
    """Every process that was started and not forgotten yet, also those that have ended."""
    return list(_started)


def forget_ended() -> None:
    """Forget the processes that have ended; called between tests."""
    _started[:] = [process for process in _started if process.running]


def kill_all() -> None:
    """Last resort at the end of a test run."""
    for process in started_processes():
        process.kill()
