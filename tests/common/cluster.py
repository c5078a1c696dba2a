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
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from tests.common.addresses import free_port, loopback_network
from tests.common.mount import Mount
from tests.common.network import Network
from tests.common.plain import PlainClient, PlainError
from tests.common.processes import Process, ProcessDied, program
from tests.common.waiting import wait_until

ACTIVE = 7
Setting = str | int | Sequence[str]
_FIRST_STORAGE, _FURTHER_TRACKERS = 3, 200


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
