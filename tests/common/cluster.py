"""A real cluster for tests: tracker, storages and mounts as processes on loopback.

Every cluster has loopback addresses of its own (127.x.y.2 for the tracker, .3 and up for the
storages) and ports that the kernel gave, so test runs beside each other do not meet, and a
daemon that is started again finds its port free::

    with Cluster(tmp_path, groups=("group1",)) as cluster:
        storage = cluster.storage("group1")
        storage.kill()
        storage.start()
        cluster.wait_active()
        with cluster.mount(tmp_path / "mnt") as mount:
            (mount.path / "group1" / "hello").write_text("world")
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import random
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType

from tests.common.network import Network
from tests.common.plain import PlainClient, PlainError
from tests.common.processes import STOP_TIMEOUT_S, Process, ProcessDied, program
from tests.common.waiting import wait_until

ACTIVE = 7
Setting = str | int | Sequence[str]
_FIRST_STORAGE, _FURTHER_TRACKERS = 3, 200
_network = random.Random(os.urandom(8))


@contextlib.contextmanager
def reserved_port(addresses: Sequence[str]) -> Iterator[int]:
    """A port that nobody else is given on *addresses* while daemons are started that listen there.

    The sockets here do not hinder it: they do not listen, and they have SO_REUSEADDR, as those of
    daemons do. They get it when they are bound, so that they do not meet each other.
    """
    while True:
        with contextlib.ExitStack() as stack:
            port = 0
            try:
                for address in addresses:
                    sock = stack.enter_context(socket.socket())
                    sock.bind((address, port))
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    port = sock.getsockname()[1]
            except OSError:
                continue
            yield port
            return


def free_port(addresses: Sequence[str]) -> int:
    """A port that is free on all *addresses* (storages of a group share their port)."""
    with reserved_port(addresses) as port:
        return port


def loopback_network() -> str:
    """The first three numbers of loopback addresses that nobody else uses: ``127.83.7``."""
    return f"127.{_network.randrange(16, 255)}.{_network.randrange(1, 255)}"


class Daemon(Process):
    """A tracker or a storage with its configuration file and its data directory."""

    def __init__(self, name: str, command: str, directory: Path, address: str, port: int) -> None:
        self.conf_path = directory / f"{name}.conf"
        super().__init__(name, [program(command), str(self.conf_path)], directory)
        self.address = address
        self.port = port
        self.base_path = directory / "base"
        self.settings: dict[str, Setting] = {"bind_addr": address, "port": port}

    def configure(self, settings: Mapping[str, Setting]) -> None:
        """Change keys of the configuration file; a running daemon has to be started again.

        A key whose value is a sequence gets a line for each item.
        """
        self.settings.update(settings)
        self.base_path.mkdir(parents=True, exist_ok=True)
        lines: list[str] = []
        for key, value in self.settings.items():
            items = [value] if isinstance(value, str | int) else value
            lines += [f"{key} = {item}" for item in items]
        self.conf_path.write_text("\n".join([*lines, ""]))

    @property
    def endpoint(self) -> str:
        """``address:port``"""
        return f"{self.address}:{self.port}"

    def connect(self, timeout_s: float = 60.0) -> socket.socket:
        """A blocking connection to the daemon."""
        return socket.create_connection((self.address, self.port), timeout_s)


class Storage(Daemon):
    """A storage with its group and store paths."""

    def __init__(self, directory: Path, group: str, number: int, address: str, port: int) -> None:
        super().__init__(f"{group}-{number}", "fdfs-storaged", directory, address, port)
        self.group = group
        self.store_paths: list[Path] = []

    def data_files(self) -> list[Path]:
        """Every regular file and link below ``data/HH/HH`` of all store paths, sorted."""
        found: list[Path] = []
        for store_path in self.store_paths:
            for high in (store_path / "data").glob("[0-9A-F][0-9A-F]"):
                for low in high.iterdir():
                    found.extend(low.iterdir() if low.is_dir() else [low])
        return sorted(found)

    def binlog_end(self) -> tuple[int, int]:
        """Number and length of the binlog's newest file."""
        newest = max((self.base_path / "data" / "sync").glob("binlog.[0-9]*"))
        return int(newest.suffix[1:]), newest.stat().st_size

    def mark_of(self, peer: Storage) -> tuple[int, int] | None:
        """How far *peer* has this storage's binlog, by the mark file, None if unknown."""
        path = self.base_path / "data" / "sync" / f"{peer.address}_{self.port}.mark"
        try:
            lines = path.read_text().splitlines()
        except FileNotFoundError:
            return None
        values = dict(line.split("=", 1) for line in lines)
        if "binlog_offset" not in values:
            return None  # a test has damaged it, and it was not written again yet
        return int(values["binlog_index"]), int(values["binlog_offset"])

    def path_of(self, file_name: str) -> Path:
        """Where ``M00/HH/HH/...`` is on the disk."""
        return self.store_paths[int(file_name[1:3], 16)] / "data" / file_name[4:]


class Cluster:
    """Trackers, and one storage for each of *groups*.

    Args:
        directory: an empty or new directory for everything.
        groups: names of groups; a name that is given twice gets two storages.
        store_paths: store paths of each storage.
        trackers: how many trackers, peers of each other.
        network: put a `Network` between all servers, which can be cut, stalled and slowed.
        tracker_conf, storage_conf: further keys of the configuration files.
    """

    def __init__(
        self,
        directory: Path,
        groups: Sequence[str] = ("group1",),
        *,
        store_paths: int = 1,
        trackers: int = 1,
        network: bool = False,
        tracker_conf: Mapping[str, Setting] | None = None,
        storage_conf: Mapping[str, Setting] | None = None,
    ) -> None:
        self.directory = directory
        self._prefix = loopback_network()
        self._private_prefix = loopback_network()
        self._network = Network() if network else None
        self._store_path_count = store_paths
        self._storage_conf = dict(storage_conf or {})
        self._storages_made = 0
        hosts = [2, *range(_FURTHER_TRACKERS, _FURTHER_TRACKERS + trackers - 1)]
        addresses = [f"{self._prefix}.{host}" for host in hosts]
        port = free_port(addresses)
        self.trackers: list[Daemon] = []
        for number, address in enumerate(addresses):
            name = f"tracker{number or ''}"
            tracker = Daemon(name, "fdfs-trackerd", directory / name, address, port)
            tracker.configure(
                {
                    "base_path": str(tracker.base_path),
                    "check_active_interval": 10,
                    "reserved_storage_space": "16MB",
                    **(tracker_conf or {}),
                }
            )
            self.trackers.append(tracker)
            self._connect(tracker)
        self.storages: list[Storage] = []
        self.mounts: list[Mount] = []
        hosts = list(range(_FIRST_STORAGE, _FIRST_STORAGE + len(groups)))
        self._ports = {
            group: free_port(
                [f"{self._prefix}.{h}" for h, g in zip(hosts, groups, strict=True) if g == group]
            )
            for group in dict.fromkeys(groups)
        }
        for group in groups:
            self._make_storage(group)

    def _make_storage(self, group: str) -> Storage:
        number = self._storages_made
        self._storages_made += 1
        address = f"{self._prefix}.{_FIRST_STORAGE + number}"
        port = self._ports.get(group) or free_port([address])
        self._ports[group] = port
        storage = Storage(self.directory / f"storage{number}", group, number, address, port)
        storage.store_paths = [
            storage.directory / f"path{index}" for index in range(self._store_path_count)
        ]
        for path in storage.store_paths:
            path.mkdir(parents=True, exist_ok=True)
        storage.configure(
            {
                "group_name": group,
                "base_path": str(storage.base_path),
                "store_path_count": len(storage.store_paths),
                **{f"store_path{i}": str(p) for i, p in enumerate(storage.store_paths)},
                "subdir_count_per_path": 8,
                "tracker_server": [tracker.endpoint for tracker in self.trackers],
                "heart_beat_interval": 1,
                "stat_report_interval": 1,
                **self._storage_conf,
            }
        )
        self._connect(storage)
        self.storages.append(storage)
        return storage

    def _connect(self, daemon: Daemon) -> None:
        """With a network: let the daemon listen at a private address, behind its public one."""
        if self._network is not None:
            private = f"{self._private_prefix}.{daemon.address.rpartition('.')[2]}"
            self._network.add(daemon.address, private, daemon.port)
            daemon.configure({"bind_addr": private})

    def add_storage(
        self, group: str = "group1", conf: Mapping[str, Setting] | None = None
    ) -> Storage:
        """Start another, empty storage for *group*, which may be new; see `wait_active`."""
        storage = self._make_storage(group)
        storage.configure(conf or {})
        storage.start()
        return storage

    def remove_storage(self, storage: Storage) -> None:
        """Stop a storage and let every tracker forget it, as an administrator does (93)."""
        storage.stop()
        self.storages.remove(storage)
        for tracker in self.trackers:
            what = f"{tracker.name} to delete {storage.name}"
            wait_until(functools.partial(self._deleted, tracker, storage), what)

    def _deleted(self, tracker: Daemon, storage: Storage) -> bool:
        """Ask a tracker to delete a storage; False while that still counts as connected."""
        body = storage.group.encode().ljust(16, b"\0") + storage.address.encode()
        with self.client(tracker) as client:
            try:
                client.call((tracker.address, tracker.port), 93, body)
            except PlainError as exc:
                if exc.status not in (errno.EBUSY, errno.EALREADY):
                    raise
                return exc.status == errno.EALREADY
        return True

    @property
    def network(self) -> Network:
        """The network between the servers, of a cluster that was made with one."""
        assert self._network is not None, "this cluster has no network; Cluster(..., network=True)"
        return self._network

    @property
    def tracker(self) -> Daemon:
        """The first tracker, often the only one."""
        return self.trackers[0]

    def __enter__(self) -> Cluster:
        try:
            self.start()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        if kind is None:
            self.stop()
        else:
            self.kill()

    @property
    def daemons(self) -> list[Daemon]:
        return [*self.trackers, *self.storages]

    def storage(self, group: str = "group1", number: int = 0) -> Storage:
        """A storage of a group (the first, unless *number* says otherwise)."""
        return [s for s in self.storages if s.group == group][number]

    def start(self) -> None:
        """Start all daemons and wait until the tracker hands out every storage."""
        for daemon in self.daemons:
            daemon.launch()
        for daemon in self.daemons:
            daemon.wait_ready()
        self.wait_active()

    def client(self, tracker: Daemon | None = None) -> PlainClient:
        """A FastDFS client without any of our extensions, of the first tracker or another one."""
        tracker = tracker or self.tracker
        return PlainClient((tracker.address, tracker.port))

    def states(self, tracker: Daemon | None = None) -> dict[str, int]:
        """What a tracker (the first, unless told) says of each storage: ``address`` -> status."""
        states: dict[str, int] = {}
        with self.client(tracker) as client:
            for group in {storage.group for storage in self.storages}:
                with contextlib.suppress(PlainError):
                    states.update(client.storage_states(group))
        return states

    def wait_active(self, timeout_s: float = 60.0) -> None:
        """Wait until every storage is ACTIVE at every tracker that runs."""

        def active() -> bool:
            for daemon in self.daemons:
                if daemon.pid and not daemon.running:
                    raise ProcessDied(f"{daemon.name} ended\n{daemon.log_tail()}")
            try:
                seen = [self.states(tracker) for tracker in self.trackers if tracker.running]
            except OSError:
                return False
            return all(
                states.get(storage.address) == ACTIVE
                for states in seen
                for storage in self.storages
            )

        try:
            wait_until(active, "all storages to be ACTIVE", timeout_s=timeout_s)
        except TimeoutError as exc:
            logs = "\n".join(daemon.log_tail() for daemon in self.daemons)
            raise TimeoutError(f"{exc}\n{logs}") from None

    def wait_settled(self, group: str = "group1", timeout_s: float = 120.0) -> None:
        """Wait until the group rests: each storage has sent its whole binlog to each other one."""
        members = [storage for storage in self.storages if storage.group == group]
        seen: list[object] = []

        def settled() -> bool:
            before = list(seen)
            ends = {storage.name: storage.binlog_end() for storage in members}
            marks = {
                f"{storage.name} -> {peer.name}": (storage.mark_of(peer), ends[storage.name])
                for storage in members
                for peer in members
                if peer is not storage
            }
            seen[:] = [(pair, *values) for pair, values in marks.items()]
            # Twice the same: while one mark was read another binlog may have grown.
            return seen == before and all(mark == end for mark, end in marks.values())

        try:
            wait_until(settled, f"{group} to rest", timeout_s=timeout_s, poll_s=0.05)
        except TimeoutError as exc:
            logs = "\n".join(storage.log_tail(3000) for storage in members)
            raise TimeoutError(f"{exc}; (mark, end) of each: {seen}\n{logs}") from None

    def mount(self, path: Path, *options: str, background: bool = False) -> Mount:
        """A mount of this cluster; use it as a context manager."""
        mount = Mount(self, path, options, background=background)
        self.mounts.append(mount)
        return mount

    def stop(self) -> None:
        """Stop everything in order; raises ProcessDied for what did not stop cleanly."""
        problems: list[str] = []
        for mount in self.mounts:
            mount.cleanup()
        for daemon in reversed(self.daemons):
            try:
                daemon.stop()
            except ProcessDied as exc:
                problems.append(str(exc))
        self._stop_network()
        for process in [*self.daemons, *self.mounts]:
            problems += process.new_bad_lines()
        if problems:
            raise ProcessDied("\n".join(problems))

    def kill(self) -> None:
        """Stop everything at once."""
        for mount in self.mounts:
            mount.cleanup()
        for daemon in self.daemons:
            daemon.kill()
        self._stop_network()

    def _stop_network(self) -> None:
        if self._network is not None:
            self._network.stop()


class Mount(Process):
    """fdfs-mount on a directory, in the foreground by default.

    In the background `process` ends when the mount answers; the one that goes on is found by
    its mount point.
    """

    def __init__(
        self, cluster: Cluster, path: Path, options: Sequence[str] = (), *, background: bool = False
    ) -> None:
        trackers = ",".join(tracker.endpoint for tracker in cluster.trackers)
        command = [program("fdfs-mount"), trackers, str(path)]
        if not background:
            command.append("-f")
        if options:
            command += ["-o", ",".join(options)]
        super().__init__(f"mount-{path.name}", command, cluster.directory / "mounts")
        self.cluster = cluster
        self.path = path
        self.background = background
        self._shows_volumes = True

    def __enter__(self) -> Mount:
        try:
            self.mount()
        except BaseException:
            self.cleanup()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.unmount()
        finally:
            self.cleanup()

    def show_only(self, top: str) -> None:
        """Mount ``VOLUME`` or ``VOLUME/DIRECTORY``; called before mounting."""
        self.command[1] = f"{self.cluster.tracker.endpoint}/{top}"
        self._shows_volumes = False

    def mount(self) -> None:
        """Start fdfs-mount and wait until the volumes are there."""
        self.path.mkdir(parents=True, exist_ok=True)
        self.launch()
        if self.background:
            code = self.wait()
            if code != 0:
                raise ProcessDied(f"fdfs-mount ended with {code}\n{self.log_tail()}")
        self.wait_mounted()

    def wait_mounted(self, timeout_s: float = 60.0) -> None:
        """Wait until the mount point is mounted and shows the cluster's volumes."""
        groups = {storage.group for storage in self.cluster.storages}
        volumes = groups if self._shows_volumes else set()

        def mounted() -> bool:
            if not self.background and not self.running:
                raise ProcessDied(f"{self.name} ended with {self.wait()}\n{self.log_tail()}")
            return is_mounted(self.path) and volumes <= set(os.listdir(self.path))

        try:
            wait_until(mounted, f"{self.path} to be mounted", timeout_s=timeout_s)
        except TimeoutError as exc:
            raise TimeoutError(f"{exc}\n{self.log_tail()}") from None

    def unmount(self, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """Unmount as a user does, and wait for a clean end of the process."""
        wait_until(lambda: unmount(self.path), f"umount {self.path}", timeout_s=timeout_s)
        if self._process is not None and not self.background:
            code = self.wait(timeout_s)
            if code != 0:
                raise ProcessDied(f"{self.name} ended with {code}\n{self.log_tail()}")

    def remount(self) -> None:
        """Unmount and mount again: nothing is cached by the kernel or by the mount."""
        self.unmount()
        self.mount()

    def cleanup(self) -> None:
        """Leave nothing behind, whatever state the mount is in."""
        if is_mounted(self.path):
            unmount(self.path, lazy=True)
        if self.running:
            try:
                self.wait(timeout_s=2)
            except TimeoutError:
                self.kill()

    def clear_caches(self) -> None:
        """Drop what the kernel caches of all file systems (needs root), else remount."""
        os.sync()
        try:
            Path("/proc/sys/vm/drop_caches").write_text("3")
        except OSError:
            self.remount()


def is_mounted(path: Path) -> bool:
    """True when something is mounted on *path*; asks the kernel's table, never the mount."""
    wanted = str(path.absolute())
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as table:
        return any(line.split(" ")[4].replace("\\040", " ") == wanted for line in table)


def unmount(path: Path, *, lazy: bool = False) -> bool:
    """fusermount3 -u; False when the mount point is busy."""
    command = ["fusermount3", "-u", *(["-z"] if lazy else []), str(path)]
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True).returncode == 0


def why_no_fuse() -> str | None:
    """Why no file system can be mounted here, or None when it can."""
    if sys.platform != "linux":
        return "FUSE tests need Linux"
    if not shutil.which("fusermount3"):
        return "fusermount3 is not installed (package fuse3)"
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "/dev/fuse cannot be opened"
    return None
