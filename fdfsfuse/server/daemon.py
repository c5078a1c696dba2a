"""What every daemon does around its work: signals, logging, readiness, exit codes.

::

    def main(conf):                              # a click command
        sys.exit(run_daemon("fdfs-storaged", lambda daemon: serve(daemon, conf)))

=========== =================================================================================
exit code
=========== =================================================================================
0           stopped by SIGTERM, SIGINT or the end of its terminal
1           failed; the reason is on stderr
2           wrong use or configuration
=========== =================================================================================
"""

from __future__ import annotations

import gc
import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from typing import TextIO

import trio

from fdfsfuse.errors import ConfigError, FdfsError, describe, single

EXIT_OK = 0
EXIT_FAILURE = 1
EXIT_USAGE = 2

LINE = "%(levelname)s %(name)s: %(message)s"
"""A message of a log, behind its time and who says it."""
_PRIORITIES = (
    (logging.CRITICAL, 2),
    (logging.ERROR, 3),
    (logging.WARNING, 4),
    (logging.INFO, 6),
    (logging.NOTSET, 7),
)
"""Python's levels, from this one up, and syslog's for them."""

logger = logging.getLogger(__name__)


class Daemon:
    """Handed to a daemon's main function.

    Attributes:
        stopping: set by SIGTERM and SIGINT; main is to finish and return. A second signal, or
            ``stop_timeout_s`` without return, cancels it.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.stopping = trio.Event()

    def ready(self, status: str) -> None:
        """Say that the daemon serves now; *status* is shown by ``systemctl status``."""
        logger.info("%s", status)
        sd_notify(f"READY=1\nSTATUS={status}")

    def status(self, status: str) -> None:
        """Replace the text that ``systemctl status`` shows."""
        sd_notify(f"STATUS={status}")


def run_daemon(
    name: str,
    main: Callable[[Daemon], Awaitable[None]],
    *,
    log_level: int = logging.INFO,
    stop_timeout_s: float = 15.0,
) -> int:
    """Run *main* until it returns or a signal stops it. Returns the exit code, see above."""
    setup_logging(name, log_level)
    stop_at_hangup()
    _raise_file_limit()
    # What imports made lives for ever; and requests make little garbage that has cycles.
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
    try:
        trio.run(_supervise, name, main, stop_timeout_s)
    except KeyboardInterrupt:
        return EXIT_OK
    except BaseException as exc:
        return _report(name, single(exc))
    return EXIT_OK


def stop_at_hangup() -> None:
    """Take the end of our terminal for SIGTERM; under nohup it still means nothing."""
    if "NOTIFY_SOCKET" in os.environ:
        # Who supervises us stops us with SIGTERM. SIGHUP makes FastDFS's servers rotate their logs;
        # systemd takes an end by it for a wanted one, and would not start us again.
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    elif signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda *_: os.kill(os.getpid(), signal.SIGTERM))


async def _supervise(
    name: str, main: Callable[[Daemon], Awaitable[None]], stop_timeout_s: float
) -> None:
    daemon = Daemon(name)
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:

            async def watch_signals() -> None:
                async for number in signals:
                    if daemon.stopping.is_set():
                        logger.warning("second signal: stopping at once")
                        nursery.cancel_scope.cancel()
                        return
                    logger.info("stopping (%s)", signal.Signals(number).name)
                    sd_notify("STOPPING=1")
                    daemon.stopping.set()
                    nursery.cancel_scope.deadline = trio.current_time() + stop_timeout_s

            nursery.start_soon(watch_signals)
            await main(daemon)
            nursery.cancel_scope.cancel()


def _report(name: str, exc: BaseException) -> int:
    if isinstance(exc, SystemExit):
        return exc.code if isinstance(exc.code, int) else EXIT_FAILURE
    if isinstance(exc, ConfigError):
        print(f"{name}: {exc}", file=sys.stderr)
        return EXIT_USAGE
    if isinstance(exc, FdfsError | OSError):
        print(f"{name}: {describe(exc)}", file=sys.stderr)
        logger.debug("failed", exc_info=exc)
        return EXIT_FAILURE
    logger.critical("failed", exc_info=exc)
    return EXIT_FAILURE


def setup_logging(name: str, level: int = logging.INFO) -> None:
    """Log to stderr. The journal gets priorities; it adds time, name and process id itself."""
    handler = logging.StreamHandler(sys.stderr)
    if _goes_to_journal(sys.stderr):
        handler.setFormatter(_JournalFormatter(LINE))
    else:
        handler.setFormatter(logging.Formatter(f"%(asctime)s {name}[%(process)d] {LINE}"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)


def _goes_to_journal(stream: TextIO | None) -> bool:
    """True when what is written to *stream* is a message for the journal (systemd.exec(5)).

    None: this process was started without such a stream.
    """
    if stream is None:
        return False
    info = os.fstat(stream.fileno())
    return os.environ.get("JOURNAL_STREAM") == f"{info.st_dev}:{info.st_ino}"


class _JournalFormatter(logging.Formatter):
    """Puts its priority in front of each line (sd-daemon(3))."""

    def format(self, record: logging.LogRecord) -> str:
        priority = next(number for level, number in _PRIORITIES if record.levelno >= level)
        return "\n".join(f"<{priority}>{line}" for line in super().format(record).split("\n"))


_LOG_LEVELS = {
    "emerg": logging.CRITICAL,
    "alert": logging.CRITICAL,
    "crit": logging.CRITICAL,
    "error": logging.ERROR,
    "warn": logging.WARNING,
    "warning": logging.WARNING,
    "notice": logging.INFO,
    "info": logging.INFO,
    "debug": logging.DEBUG,
}


def log_level_of(name: str) -> int:
    """The logging level for a log_level of a configuration (syslog's names)."""
    return _LOG_LEVELS.get(name.lower(), logging.INFO)


def _raise_file_limit() -> None:
    """Allow as many open files as the system lets us, for connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError):
            logger.debug("the limit of open files stays at %d", soft)


def sd_notify(message: str) -> None:
    """Tell systemd (sd_notify(3)); does nothing when not started with Type=notify."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.settimeout(1.0)
            sock.sendto(message.encode(), address)
    except OSError as exc:
        logger.warning("cannot notify systemd: %s", exc)
