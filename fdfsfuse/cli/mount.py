"""``fdfs-mount``: mount the volumes of a cluster.

In the background, this process (the parent) waits for its child, checks that the mount answers and
exits with 0 or with 1 and the reason. It forks before any trio or FUSE state exists.
"""

from __future__ import annotations

import json
import logging
import logging.handlers
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NoReturn

import click
import trio

from fdfsfuse import __version__
from fdfsfuse.cli.mount_options import MountOptions, parse_options, parse_source
from fdfsfuse.errors import ConfigError, FdfsError, UsageError, describe, single
from fdfsfuse.fuse.kernelmount import remount
from fdfsfuse.fuse.mountpoint import (
    MountFailed,
    check_fuse,
    check_mountpoint,
    permissions_matter,
    self_test,
)
from fdfsfuse.fuse.mounttable import FILE_SYSTEM_TYPE, mounted_on, resolve
from fdfsfuse.fuse.runner import Mount, serve
from fdfsfuse.server.daemon import (
    EXIT_FAILURE,
    EXIT_OK,
    EXIT_USAGE,
    LINE,
    sd_notify,
    setup_logging,
    stop_at_hangup,
)
from fdfsfuse.vfs.options import VfsOptions

NAME = "fdfs-mount"
_SELF_TEST_S = 20.0
_SYSLOG = Path("/dev/log")
_NOT_REMOUNTED = (
    "a remount changes ro, nosuid, nodev, noexec and noatime; the other options stay as they are"
)
_KERNEL_DEFAULTS = frozenset(("rw", "atime"))
"""They undo options before them. libfuse does not know them all."""

log = logging.getLogger(__name__)


class _MountPoint(click.Path):
    """Completed as a directory, but not looked at: what is mounted there may hang."""

    def __init__(self) -> None:
        super().__init__(file_okay=False)

    def convert(
        self,
        value: str | os.PathLike[str],
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> Path:
        """Raises nothing: `check_mountpoint` finds out what it is."""
        return Path(value)


@click.command(
    context_settings={"help_option_names": ["-h", "--help"]},
    options_metavar="[-f] [-d] [-o OPTIONS]",
)
@click.argument("source", metavar="TRACKER[,TRACKER...][/VOLUME[/DIR]]")
@click.argument("mountpoint", metavar="MOUNTPOINT", type=_MountPoint())
@click.option("-f", "--foreground", is_flag=True, help="Stay in the foreground, log to stderr.")
@click.option("-d", "--debug", is_flag=True, help="As -f, and log each request.")
@click.option("-o", "options", metavar="OPTIONS", multiple=True, help="Mount options, see above.")
@click.option("-n", "-s", "-v", "ignored", is_flag=True, hidden=True)
@click.option("-t", "-N", "also_ignored", hidden=True)
@click.option("--helper", is_flag=True, hidden=True)
@click.version_option(__version__, "-V", "--version", prog_name=NAME)
def main(
    source: str,
    mountpoint: Path,
    foreground: bool,
    debug: bool,
    options: tuple[str, ...],
    ignored: bool,
    also_ignored: str | None,
    helper: bool,
) -> NoReturn:
    """Mount the volumes of a FastDFS cluster on the directory MOUNTPOINT.

    TRACKER is HOST or HOST:PORT (22122); give all trackers of the cluster, separated by commas.
    Each volume (group) is a directory of the mount; with /VOLUME or /VOLUME/DIR, that directory
    itself is mounted. fdfs:// may stand in front. Without -f the command returns when the mount
    answers. Unmount with: fusermount3 -u MOUNTPOINT, or as root: umount MOUNTPOINT

    \b
    Examples:
      fdfs-mount 192.168.0.1 /mnt/fdfs
      fdfs-mount tracker1,tracker2:22122 /mnt/fdfs -o allow_other,ids=hide
      fdfs-mount tracker1 /mnt/fdfs -f -o ro,timeout=10
      fdfs-mount fdfs://tracker1,tracker2/group1/home /home -o allow_other,hard

    \b
    Options for -o, separated by commas:
      allow_other       let other users in; by default only the user who mounts may enter
      ro                no changes
      ids=ro|rw|hide    objects by id under VOLUME/M00: read and give names (ro, the
                        default), delete too (rw), or not shown
      uid=N gid=N       owner of / and of objects without a name  [the user who mounts]
      umask=NNN         taken off their permissions  [000]
      soft              a call that gets no answer fails with EIO (the default) ...
      timeout=S         ... after so many seconds  [30]
      hard              it waits for as long as it takes
      acl               POSIX ACLs (getfacl, setfacl); only root can mount so
      lease=S           changes by others wait so many seconds for this mount when it cannot be
                        reached  [what the volume grants, which is the most]
      attr_timeout=S    how old attributes of objects without a name may be  [1]
      read_ahead=SIZE   memory for reading ahead, e.g. 64M  [64M]
      write_buffer=SIZE memory for content that is not stored yet  [256M]
      cache=SIZE        memory for content of small open files  [32M]
      cache_entries=N   names and inodes of a volume that are remembered  [65536]
      log=FILE|syslog   where to log in the background  [syslog, or without one
                        ~/.cache/fdfs-mount.log]
    and nosuid, nodev, noexec, noatime, sync, dirsync; what else mount(8) passes is accepted.
    remount changes ro, nosuid, nodev, noexec and noatime (or rw, suid ...) of a mount in use.

    For /etc/fstab, mount(8) and .mount units, run once as root: fdfs install-helpers

    Exit codes: 0 mounted (with -f: unmounted), 1 failed, 2 wrong arguments.
    """
    exit_code = _helper_code if helper else int
    if helper and foreground:
        # What mount(8) means by -f: everything but mounting.
        foreground, fake = False, True
    else:
        fake = False
    try:
        parsed = parse_options(options)
        addresses, top = parse_source(source)
        vfs = replace(parsed.vfs, top=top)
        mountpoint = Path(resolve(str(mountpoint)))
        if parsed.remount:
            if not fake:
                _remount(mountpoint, parsed)
            sys.exit(EXIT_OK)
        check_mountpoint(mountpoint)
        check_fuse(allow_other="allow_other" in parsed.libfuse, acl=vfs.acl)
    except (FdfsError, OSError) as exc:
        sys.exit(exit_code(_complain(exc)))
    if fake:
        sys.exit(EXIT_OK)
    libfuse = parsed.libfuse - _KERNEL_DEFAULTS
    if vfs.acl or permissions_matter(allow_other="allow_other" in libfuse):
        libfuse |= {"default_permissions"}
    mount = Mount(addresses, mountpoint, vfs, libfuse, source=source, trace=debug)
    if foreground or debug:
        sys.exit(exit_code(_run_in_foreground(mount, debug)))
    sys.exit(exit_code(_run_in_background(mount, parsed)))


def _remount(mountpoint: Path, options: MountOptions) -> None:
    entry = mounted_on(mountpoint)
    if entry is None or entry.type != FILE_SYSTEM_TYPE:
        raise MountFailed(f"{mountpoint}: nothing of ours is mounted here that could be remounted")
    remount(mountpoint, options.libfuse)
    if options.vfs != VfsOptions():
        print(f"{NAME}: {mountpoint}: {_NOT_REMOUNTED}", file=sys.stderr)


def _helper_code(code: int) -> int:
    """The exit code as mount(8) has it: 1 wrong use, 32 mounting failed."""
    return {EXIT_USAGE: 1, EXIT_FAILURE: 32}.get(code, code)


# --- in the foreground --------------------------------------------------------------------------


def _run_in_foreground(mount: Mount, debug: bool) -> int:
    stop_at_hangup()
    setup_logging(NAME, logging.DEBUG if debug else logging.INFO)
    # pyfuse3 and trio tell of every step at DEBUG; the requests are what -d is for.
    logging.getLogger("pyfuse3").setLevel(logging.INFO)

    async def mounted() -> None:
        # Not on this thread: it serves the mount that is being tested.
        test = partial(self_test, mount.mountpoint, _SELF_TEST_S)
        await trio.to_thread.run_sync(test, abandon_on_cancel=True)
        log.info("mounted on %s", mount.mountpoint)
        sd_notify(f"READY=1\nSTATUS=mounted on {mount.mountpoint}")

    return _serve(mount, mounted, _complain)


def _serve(
    mount: Mount, mounted: Callable[[], Awaitable[None]], complain: Callable[[BaseException], int]
) -> int:
    try:
        trio.run(serve, mount, mounted)
    except BaseException as exc:
        return complain(single(exc))
    sd_notify("STOPPING=1")
    return EXIT_OK


def _complain(exc: BaseException) -> int:
    """One line for what people can do something about, a traceback for the rest."""
    if isinstance(exc, KeyboardInterrupt):
        return EXIT_OK
    if isinstance(exc, FdfsError | OSError):
        print(f"{NAME}: {describe(exc)}", file=sys.stderr)
        return EXIT_USAGE if isinstance(exc, ConfigError | UsageError) else EXIT_FAILURE
    log.critical("failed", exc_info=exc)
    return EXIT_FAILURE


# --- in the background --------------------------------------------------------------------------


def _run_in_background(mount: Mount, options: MountOptions) -> int:
    """Fork; the child serves, the parent waits until the mount was seen to work."""
    try:
        handler = _log_handler(options.log)
    except OSError as exc:
        return _complain(exc)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _become_server(mount, handler, writing)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.readline()
    if not said:
        return _complain(MountFailed(f"the mount process ended unexpectedly{_code(child)}"))
    message = json.loads(said)
    if message["error"]:
        os.waitpid(child, 0)
        return _complain(MountFailed(message["error"]))
    try:
        self_test(mount.mountpoint, _SELF_TEST_S)
    except BaseException as exc:
        # The second signal: no request that hangs is waited for.
        os.kill(child, signal.SIGTERM)
        os.kill(child, signal.SIGINT)
        os.waitpid(child, 0)
        if not isinstance(exc, MountFailed):
            raise
        return _complain(exc)
    return EXIT_OK


def _code(child: int) -> str:
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return f" with {code}" if code >= 0 else f" by signal {-code}"


def _become_server(mount: Mount, handler: logging.Handler, pipe: int) -> NoReturn:
    """The child: a session of its own, logging to *handler*, its first words to *pipe*."""
    code = EXIT_FAILURE
    try:
        os.setsid()
        # The end of a login session sends SIGTERM and SIGHUP; the first one stores everything.
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        os.chdir("/")
        _log_to(handler)
        told = False

        def tell(error: str) -> None:
            nonlocal told
            if not told:
                told = True
                os.write(pipe, json.dumps({"error": error}).encode() + b"\n")
                os.close(pipe)

        async def mounted() -> None:
            # Up to here libfuse and fusermount3 could complain on the user's terminal.
            _close_terminal()
            log.info("mounted on %s", mount.mountpoint)
            try:
                tell("")
            except BrokenPipeError:
                raise MountFailed("interrupted while it was being mounted") from None

        def complain(exc: BaseException) -> int:
            if isinstance(exc, FdfsError | OSError):
                if told:
                    log.error("%s", describe(exc))
                tell(describe(exc))
            else:
                log.critical("failed", exc_info=exc)
                tell(str(exc) or repr(exc))
            return EXIT_FAILURE

        code = _serve(mount, mounted, complain)
        log.info("ended")
    finally:
        logging.shutdown()
        os._exit(code)


def _log_handler(where: str) -> logging.Handler:
    """Where to log in the background. Raises OSError when it cannot be written to."""
    who = f"{NAME}[%(process)d]"
    if where == "syslog" or (not where and _SYSLOG.exists()):
        handler: logging.Handler = _to_syslog()
        stamp = f"{who}: "
    else:
        path = Path(where) if where else Path.home() / ".cache" / f"{NAME}.log"
        if not where:
            path.parent.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(path)
        stamp = f"%(asctime)s {who} "
    handler.setFormatter(logging.Formatter(stamp + LINE))
    return handler


def _to_syslog() -> logging.Handler:
    handler = logging.handlers.SysLogHandler(str(_SYSLOG))
    # Between the messages of a stream; at the end of a datagram it would be logged.
    handler.append_nul = handler.socktype == socket.SOCK_STREAM
    return handler


def _log_to(handler: logging.Handler) -> None:
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)


def _close_terminal() -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.close(null)


if __name__ == "__main__":
    main()
