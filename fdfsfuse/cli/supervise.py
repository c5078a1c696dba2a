"""The processes under ``fdfs mini``: start, readiness, logs, the order in which they end."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
from pathlib import Path

import trio

from fdfsfuse.cli.child import PARENT
from fdfsfuse.errors import FdfsError

READY_TIMEOUT_S = 60.0
#: longer than the time that the daemons and the mount give themselves for a clean end: the mount
#: has a minute each for content, for requests under way, and for what is left
STOP_TIMEOUT_S = 200.0
LOG_LIMIT = 4 << 20
TAIL_LINES = 12


class ChildProblem(FdfsError):
    """A process ended, or did not get ready; the text says which one, and what it last logged."""


class Child:
    """One process with its log file.  Use it from one task; ``wait`` may run beside it."""

    def __init__(self, name: str, command: list[str], log_path: Path) -> None:
        """``command`` is one of the package's commands (cli/child.py) and its arguments."""
        self.name = name
        self.log_path = log_path
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None
        self._notify: socket.socket | None = None
        self._log_start = 0

    @property
    def pid(self) -> int:
        """0 before the start."""
        return self._process.pid if self._process is not None else 0

    @property
    def running(self) -> bool:
        """Whether it has been started and has not ended."""
        return self._process is not None and self._process.poll() is None

    @property
    def exit_code(self) -> int:
        """Of a process that has ended: its exit code, or minus the signal."""
        assert self._process is not None
        return self._process.wait()

    def launch(self, cwd: Path) -> None:
        """Start the process and return at once.

        It gets a process group of its own, so that Ctrl-C reaches us alone and we stop all of
        them in order.  Popen is called in this thread, not in a worker: the child is told to end
        with the thread that started it.
        """
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        # Abstract, so no file stays behind and DIR may have a long name.
        address = f"fdfs-mini-{os.getpid()}-{secrets.token_hex(8)}"
        self._notify.bind("\0" + address)
        self._notify.setblocking(False)
        if self.log_path.exists() and self.log_path.stat().st_size > LOG_LIMIT:
            os.replace(self.log_path, self.log_path.with_suffix(".log.old"))
        environment = {
            **os.environ,
            "PYTHONUNBUFFERED": "1",
            # Where Python knows it (3.11): -m does not put the working directory on the path.
            "PYTHONSAFEPATH": "1",
            "NOTIFY_SOCKET": "@" + address,
            PARENT: str(os.getpid()),
        }
        with self.log_path.open("ab") as log:
            self._log_start = log.tell()
            self._process = subprocess.Popen(
                [sys.executable, "-m", "fdfsfuse.cli.child", *self._command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                cwd=cwd,
                start_new_session=True,
            )

    async def wait_ready(self, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Wait for READY=1 (sd_notify).

        Raises:
            ChildProblem: the process ended before, or ``timeout_s`` passed
        """
        assert self._notify is not None
        with trio.move_on_after(timeout_s):
            while self.running:
                try:
                    message = self._notify.recv(4096)
                except BlockingIOError:
                    # Also looks at the process now and then: its end does not wake the socket.
                    with trio.move_on_after(0.05):
                        await trio.lowlevel.wait_readable(self._notify)
                    continue
                if b"READY=1" in message.split(b"\n"):
                    return
            raise self.died()
        raise ChildProblem(f"{self.name} is not ready after {timeout_s:g} s{self._tail_text()}")

    async def wait(self) -> int:
        """Wait for the end; the exit code, or minus the signal."""
        process = self._process
        assert process is not None
        if (code := process.poll()) is not None:
            return code
        descriptor = os.pidfd_open(process.pid)
        try:
            while process.poll() is None:
                await trio.lowlevel.wait_readable(descriptor)
        finally:
            os.close(descriptor)
        return process.wait()

    def signal(self, number: int) -> None:
        """Send a signal; nothing happens when the process has ended."""
        if self._process is not None:
            self._process.send_signal(number)

    async def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> str | None:
        """SIGTERM, and SIGKILL after ``timeout_s``.

        Returns what was not clean about the end, or None.
        """
        if self._process is None:
            return None
        self.signal(signal.SIGTERM)
        with trio.move_on_after(timeout_s):
            code = await self.wait()
            self.close()
            if code not in (0, -signal.SIGTERM):
                return f"{self.name} ended with {describe_exit(code)}{self._tail_text()}"
            return None
        self.signal(signal.SIGKILL)
        await self.wait()
        self.close()
        return f"{self.name} did not stop in {timeout_s:g} s and was killed{self._tail_text()}"

    def died(self) -> ChildProblem:
        """The error for a process that ended unasked."""
        assert self._process is not None
        code = self._process.wait()
        return ChildProblem(f"{self.name} ended with {describe_exit(code)}{self._tail_text()}")

    def tail(self) -> list[str]:
        """The last lines that this run of the process logged."""
        with self.log_path.open("rb") as log:
            log.seek(0, os.SEEK_END)
            log.seek(max(self._log_start, log.tell() - 8192))
            return log.read().decode(errors="replace").splitlines()[-TAIL_LINES:]

    def close(self) -> None:
        """Release the readiness socket. The process is not touched."""
        if self._notify is not None:
            self._notify.close()
            self._notify = None

    def _tail_text(self) -> str:
        lines = self.tail()
        if not lines:
            return f" (nothing in {self.log_path})"
        return f"; the end of {self.log_path}:\n" + "\n".join(f"  {line}" for line in lines)


def describe_exit(code: int) -> str:
    """``exit code 1`` or ``signal SIGKILL``"""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"
