"""The control socket of a mount: whoever connects gets one JSON document about it.

A thread of its own answers, so a mount that waits, or even hangs, still tells what it waits for.
The sockets of root's mounts are in /run/fdfsfuse, those of others in ``$XDG_RUNTIME_DIR/fdfsfuse``;
a name is made of the mount point and the process id. Sockets that nobody listens on any more are
removed by the next mount that starts there.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

ROOT_DIRECTORY = Path("/run/fdfsfuse")
TIMEOUT_S = 5.0
"""How long one asker may take to read, and a mount to answer."""
REPORT_MAX = 16 << 20
_SUFFIX = ".sock"


def directory() -> Path | None:
    """Where this user's control sockets are; None without a place for them."""
    if os.geteuid() == 0:
        return ROOT_DIRECTORY
    runtime = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.geteuid()}"
    return Path(runtime) / "fdfsfuse" if os.path.isdir(runtime) else None


def _prefix(mountpoint: str) -> str:
    return hashlib.sha256(os.fsencode(mountpoint)).hexdigest()[:16] + "-"


class ControlSocket:
    """Answers while the ``with`` block lasts.

    Args:
        mountpoint: with all links resolved, which must be done before mounting.
        report: called in a thread of the socket's own.
    """

    def __init__(self, mountpoint: str, report: Callable[[], dict[str, Any]]) -> None:
        self._name = f"{_prefix(mountpoint)}{os.getpid()}{_SUFFIX}"
        self._report = report
        self._socket: socket.socket | None = None
        self._path: Path | None = None

    def __enter__(self) -> ControlSocket:
        where = directory()
        try:
            if where is None:
                raise FileNotFoundError("XDG_RUNTIME_DIR is not set")
            where.mkdir(mode=0o755, exist_ok=True)
            remove_stale(where)
            self._listen(where / self._name)
        except OSError as exc:
            # A mount without it works as well as with it.
            log.warning("no control socket, so `fdfs mount-stats` does not find the mount: %s", exc)
        return self

    def _listen(self, path: Path) -> None:
        with contextlib.ExitStack() as on_failure:
            listener = on_failure.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            # Another mount that starts must not meet it before it listens: it would be stale.
            new = path.with_suffix(".new")
            new.unlink(missing_ok=True)
            old = os.umask(0o177)
            try:
                listener.bind(str(new))
            finally:
                os.umask(old)
            listener.listen(8)
            new.rename(path)
            on_failure.pop_all()
        self._socket, self._path = listener, path
        threading.Thread(target=self._serve, args=(listener,), daemon=True).start()

    def __exit__(self, *exc: object) -> None:
        if self._socket is not None and self._path is not None:
            self._path.unlink(missing_ok=True)
            # Wakes the thread, which closing alone would not.
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
            self._socket.close()

    def _serve(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                connection.settimeout(TIMEOUT_S)
                connection.sendall(self._answer())

    def _answer(self) -> bytes:
        try:
            return json.dumps(self._report()).encode()
        except Exception:
            log.exception("the report about the mount failed")
            return b"{}"


def remove_stale(where: Path) -> None:
    """Remove the sockets in *where* that nobody listens on."""
    for path in where.glob(f"*{_SUFFIX}"):
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
            probe.setblocking(False)  # one with a full queue is not waited for: somebody listens
            try:
                probe.connect(str(path))
            except ConnectionRefusedError:
                path.unlink(missing_ok=True)


def ask(path: Path) -> dict[str, Any]:
    """The report of the mount behind a control socket.

    Raises:
        OSError: nobody listens, or the answer did not come.
        ValueError: it makes no sense.
    """
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(TIMEOUT_S)
        connection.connect(str(path))
        data = bytearray()
        while piece := connection.recv(1 << 16):
            data += piece
            if len(data) > REPORT_MAX:
                raise ValueError("the report is too long")
    report = json.loads(data)
    if not isinstance(report, dict) or "mountpoint" not in report:
        raise ValueError("the mount could not tell; see its log")
    return report


def is_socket_of(path: Path, mountpoint: str) -> bool:
    """Whether a control socket is that of the mount on *mountpoint*."""
    return path.name.startswith(_prefix(mountpoint))


def sockets(mountpoint: str | None = None) -> Iterator[Path]:
    """Control sockets of this user's mounts, of the one on *mountpoint*; the newest first."""
    where = directory()
    if where is None:
        return
    found = []
    for path in where.glob(f"{_prefix(mountpoint) if mountpoint else ''}*{_SUFFIX}"):
        with contextlib.suppress(FileNotFoundError):
            found.append((-path.stat().st_mtime_ns, path))
    for _, path in sorted(found):
        yield path
