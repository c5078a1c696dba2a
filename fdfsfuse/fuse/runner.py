"""Serving a mount: from the first question to a tracker until it is unmounted.

The end: SIGTERM or SIGINT store all content while the mount still serves, then end it; umount ends
it by itself (the kernel has flushed and released all files by then). In both cases what is not
stored yet is stored, the sessions are closed, and the mount point is free.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyfuse3
import trio

from fdfsfuse.client import directwait
from fdfsfuse.client.address import Address
from fdfsfuse.errors import ConnectionProblem, FdfsError
from fdfsfuse.fuse.caches import KernelCaches
from fdfsfuse.fuse.control import ControlSocket
from fdfsfuse.fuse.handshake import HANDLE_KILLPRIV_V2
from fdfsfuse.fuse.kernelmount import KernelMount
from fdfsfuse.fuse.mountpoint import MountFailed
from fdfsfuse.fuse.mounttable import device_of
from fdfsfuse.fuse.operations import Operations
from fdfsfuse.fuse.report import Report
from fdfsfuse.fuse.request_turns import take_turns
from fdfsfuse.vfs.options import VfsOptions
from fdfsfuse.vfs.remote import RemoteCluster
from fdfsfuse.vfs.vfs import Vfs

log = logging.getLogger(__name__)

MAX_REQUESTS = 400
"""Requests served at a time. More than several dead volumes can hold on to (`max_waiting` each);
each has a buffer, of which a write uses 1 MiB."""
IDLE_TASKS = 3
"""Tasks kept waiting for requests: starting one for each request costs more."""
_SUBTYPE = "fdfs"
_FIRST_CONTACT_S = 10.0
_STORE_S = 60.0
_RETRY_S = 0.5
_READ_AHEAD_KIB = 1024
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_MMAP_THRESHOLD = 32 << 20
_TRIM_THRESHOLD = 64 << 20


@dataclass(frozen=True, slots=True)
class Mount:
    """What is mounted where."""

    trackers: Sequence[Address]
    mountpoint: Path
    options: VfsOptions
    libfuse: frozenset[str]
    source: str
    trace: bool = False

    def libfuse_options(self) -> set[str]:
        """For pyfuse3.init, which takes ASCII. Commas inside a value are escaped."""
        source = self.source.encode("ascii", "replace").decode()
        source = source.replace("\\", "\\\\").replace(",", "\\,")
        return {f"fsname={source}", f"subtype={_SUBTYPE}", *self.libfuse}


async def serve(mount: Mount, mounted: Callable[[], Awaitable[None]]) -> None:
    """Mount and serve until unmounted or told to stop by a signal.

    Args:
        mounted: awaited once the kernel has the mount and requests are served. An FdfsError
            from it ends the mount.

    Raises:
        ConnectionProblem: no tracker answers. MountFailed: see the text; also when content could
            not be stored in the end.
    """
    keep_freed_memory()
    directwait.install()
    # As in the daemons: what imports made lives for ever, and requests make few cycles.
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
    client = f"{os.uname().nodename}:{mount.mountpoint}:{os.getpid()}"
    options = mount.options
    cluster = RemoteCluster(mount.trackers, client, options.patience_s, options.lease_s)
    vfs = Vfs(mount.options, cluster, KernelCaches())
    try:
        async with trio.open_nursery() as nursery:
            await _first_contact(cluster, mount)
            await nursery.start(vfs.run)
            await _serve_mounted(vfs, mount, mounted)
            vfs.stop()
    finally:
        cluster.close()


def keep_freed_memory() -> None:
    """Let malloc reuse freed buffers instead of giving them back to the kernel.

    Each WRITE is a buffer of up to 1 MiB. Mapped anew each time, its page faults cost several times
    as much as copying it: 1,200 instead of 8,000 MiB/s were measured. Needs glibc.
    """
    try:
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, _MMAP_THRESHOLD)
        libc.mallopt(_M_TRIM_THRESHOLD, _TRIM_THRESHOLD)
    except (OSError, AttributeError):
        log.debug("malloc stays as it is")


async def _first_contact(cluster: RemoteCluster, mount: Mount) -> None:
    """Wait a moment for a tracker: one that is being started is no mistake."""
    until = trio.current_time() + min(_FIRST_CONTACT_S, mount.options.timeout_s)
    while True:
        # Never cut off: the trackers are asked in turn, and each that hangs takes its time.
        try:
            await cluster.volumes()
            return
        except FdfsError as exc:
            if trio.current_time() >= until:
                raise ConnectionProblem(f"no tracker answers: {exc}") from None
        await trio.sleep(_RETRY_S)


async def _serve_mounted(vfs: Vfs, mount: Mount, mounted: Callable[[], Awaitable[None]]) -> None:
    # From before the kernel has the mount until it is gone: no signal leaves a dead one behind.
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        root_alone = "default_permissions" not in mount.libfuse
        operations = Operations(vfs, root_alone=root_alone, trace=mount.trace)
        report = Report(mount, vfs, operations.stats)
        own: KernelMount | None = None
        try:
            where = str(mount.mountpoint)
            if mount.options.acl:
                own = KernelMount(Path(report.mountpoint), mount.source, _SUBTYPE, mount.libfuse)
                where = own.descriptor_path
            pyfuse3.init(operations, where, mount.libfuse_options())
        except RuntimeError as exc:
            if own is not None:
                own.close()
            raise MountFailed(f"cannot mount on {mount.mountpoint}: {exc}") from None
        try:
            with ControlSocket(report.mountpoint, report):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_stop_on_signals, signals, vfs, nursery.cancel_scope)
                    nursery.start_soon(mounted)
                    nursery.start_soon(_widen_read_ahead, mount.mountpoint)
                    promise = root_alone or "suid" not in mount.libfuse
                    take_turns(HANDLE_KILLPRIV_V2 if promise else 0)
                    await pyfuse3.main(IDLE_TASKS, MAX_REQUESTS)
                    nursery.cancel_scope.cancel()
                lost = await _store_rest(vfs, signals)
        finally:
            pyfuse3.close(unmount=True)
            if own is not None:
                own.close()
    if lost:
        raise MountFailed(f"{lost} files could not be stored")


async def _stop_on_signals(
    signals: AsyncIterator[int], vfs: Vfs, serving: trio.CancelScope
) -> None:
    stopping = False
    async with trio.open_nursery() as nursery:
        async for _ in signals:
            if stopping:
                serving.cancel()
                return
            stopping = True
            nursery.start_soon(_stop, vfs, serving)


async def _stop(vfs: Vfs, serving: trio.CancelScope) -> None:
    log.info("stopping")
    with trio.move_on_after(_STORE_S):
        await vfs.files.store_all()
    pyfuse3.terminate()
    # With -o hard a request that waits for a volume would go on waiting.
    await trio.sleep(_STORE_S)
    serving.cancel()


async def _store_rest(vfs: Vfs, signals: AsyncIterator[int]) -> int:
    """Store what is not stored yet; how many files could not be. Ctrl-C gives the others up."""

    async def watch(storing: trio.CancelScope) -> None:
        async for number in signals:
            if number == signal.SIGINT:
                storing.cancel()

    with trio.CancelScope(deadline=trio.current_time() + _STORE_S, shield=True) as storing:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch, storing)
            lost = await vfs.files.store_all()
            nursery.cancel_scope.cancel()
        return lost
    return sum(state.dirty for state in vfs.context.states.values())


async def _widen_read_ahead(mountpoint: Path) -> None:
    """Let the kernel ask for 1 MiB at a time: each READ costs us about as much as any other.

    Only root may; with the kernel's 128 KiB reading is correct but slower. Not before the first
    answer: the end of the FUSE handshake sets the value back.
    """
    try:
        await trio.to_thread.run_sync(os.stat, mountpoint, abandon_on_cancel=True)
        path = Path(f"/sys/class/bdi/{device_of(mountpoint)}/read_ahead_kb")
        path.write_text(f"{_READ_AHEAD_KIB}\n")  # noqa: ASYNC240 (no disk is behind it)
    except OSError as exc:
        log.debug("read-ahead stays as it is: %s", exc)
