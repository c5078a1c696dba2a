"""What replication costs, and how long it takes: two storages of one volume, and a tracker.

    python -m benchmarks.replication                     # in memory (/dev/shm)
    python -m benchmarks.replication --directory /srv    # on that file system
    python -m benchmarks.replication --files 10000 --large 256 --json

===================== ========================================================================
figure                meaning
===================== ========================================================================
delay, median         from the answer to an upload until the other storage has the file, when
                      nothing else is going on
burst, in sync after  from the end of a burst of small uploads until the other storage has all
per small file        CPU time of source and target for replicating a file of 4 KiB: what both
                      used to bring a backlog to the target, while nobody uploads
per MiB               the same for large files
===================== ========================================================================

CPU time is what the kernel accounted to all threads of a process, so it holds on a busy machine
too; times do not.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from benchmarks.wire import Client
from fdfsfuse.proto import structs
from fdfsfuse.proto.cluster_status import REPLICATION_STATUS, PeerReplication, ReplicationStatus

TRACKER, SOURCE, TARGET = "127.0.0.81", "127.0.0.82", "127.0.0.83"
GROUP = "group1"
SMALL = 4096
MIB = 1 << 20
_PATIENCE_S = 120.0


def free_port() -> int:
    """A port that is free on all three addresses."""
    while True:
        sockets = [socket.socket() for _ in range(3)]
        try:
            port = 0
            for sock, address in zip(sockets, (TRACKER, SOURCE, TARGET), strict=True):
                sock.bind((address, port))
                port = sock.getsockname()[1]
        except OSError:
            continue
        finally:
            for sock in sockets:
                sock.close()
        return port


class Server:
    """A daemon in its own process."""

    def __init__(self, command: str, conf: Path) -> None:
        self.command = [sys.executable, "-c", f"from {command}.cli import main; main()", str(conf)]
        self.log = conf.with_suffix(".log")
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log)

    def stop(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(20)
            self.process = None

    def cpu_s(self) -> float:
        """CPU seconds used so far by all threads."""
        assert self.process is not None
        tasks = Path(f"/proc/{self.process.pid}/task").iterdir()
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


class Volume:
    """A volume of two storages."""

    def __init__(self, directory: Path) -> None:
        self.port = free_port()
        self.tracker = Server("fdfs_tracker", self._configure(directory, "tracker", TRACKER))
        self.source = Server("fdfs_storage", self._configure(directory, "source", SOURCE))
        self.target = Server("fdfs_storage", self._configure(directory, "target", TARGET))
        self.target_data = directory / "target/data"

    def _configure(self, directory: Path, name: str, address: str) -> Path:
        base = directory / name
        base.mkdir()
        lines = [f"bind_addr = {address}", f"port = {self.port}", f"base_path = {base}"]
        if address == TRACKER:
            lines.append("reserved_storage_space = 1MB")
        else:
            lines += [
                f"group_name = {GROUP}",
                f"store_path0 = {base}",
                "subdir_count_per_path = 16",
                f"tracker_server = {TRACKER}:{self.port}",
                "heart_beat_interval = 1",
                "stat_report_interval = 1",
            ]
        conf = directory / f"{name}.conf"
        conf.write_text("\n".join([*lines, ""]))
        return conf

    def start(self) -> None:
        self.tracker.start()
        self.source.start()
        self._until(lambda: self._answers(SOURCE))
        self.target.start()
        self._until(lambda: self.peer() is not None and self.is_settled())

    def stop(self) -> None:
        for server in (self.target, self.source, self.tracker):
            server.stop()

    def _answers(self, address: str) -> bool:
        try:
            self.client(address).sock.close()
        except OSError:
            return False
        return True

    def client(self, address: str = SOURCE) -> Client:
        """A connection to a storage."""
        return Client((address, self.port))

    def peer(self) -> PeerReplication | None:
        """How far the source has brought its changes to the target."""
        try:
            client = self.client()
            try:
                report = structs.decode(ReplicationStatus, client.call(REPLICATION_STATUS, b""))
            finally:
                client.sock.close()
        except OSError:
            return None
        return report.peers[0] if report.peers else None

    def is_settled(self) -> bool:
        peer = self.peer()
        return peer is not None and peer.state == "idle" and not peer.records_left

    def has(self, name: str) -> bool:
        """True when the target has the file."""
        return (self.target_data / name[4:]).exists()

    @staticmethod
    def _until(condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _PATIENCE_S
        while not condition():
            if time.monotonic() > deadline:
                raise SystemExit("the volume did not get ready; use --keep and look at the logs")
            time.sleep(0.02)

    def wait_for(self, name: str) -> float:
        """Seconds until the target has the file."""
        start = time.perf_counter()
        while not self.has(name):
            if time.perf_counter() - start > _PATIENCE_S:
                raise SystemExit(f"{name} did not come")
            time.sleep(0.0002)
        return time.perf_counter() - start

    def wait_settled(self) -> None:
        """Wait until the target has everything."""
        self._until(self.is_settled)


def measure_delay(volume: Volume, count: int) -> dict[str, float]:
    client = volume.client()
    delays = []
    for _ in range(count):
        delays.append(volume.wait_for(client.upload(os.urandom(SMALL))))
        time.sleep(0.01)
    client.sock.close()
    return {
        "delay, median ms": statistics.median(delays) * 1000,
        "delay, worst ms": max(delays) * 1000,
    }


def measure_burst(volume: Volume, count: int) -> dict[str, float]:
    client = volume.client()
    content = os.urandom(SMALL)
    start = time.perf_counter()
    for _ in range(count):
        name = client.upload(content)
    took = time.perf_counter() - start
    client.sock.close()
    behind = volume.wait_for(name)
    return {
        f"burst of {count}, files/s": count / took,
        f"burst of {count}, in sync after s": behind,
    }


def restart_target(volume: Volume, count: int, content: bytes) -> tuple[float, float]:
    """CPU seconds of source and target for bringing *count* files to a target that was stopped,
    with its start."""
    volume.target.stop()
    client = volume.client()
    for _ in range(count):
        name = client.upload(content)
    client.sock.close()
    before = volume.source.cpu_s()
    volume.target.start()
    volume.wait_for(name)  # the source is not asked before: its answers take CPU time too
    volume.wait_settled()
    return volume.source.cpu_s() - before, volume.target.cpu_s()


def measure_cpu(volume: Volume, count: int, size: int, unit: str, units: int) -> dict[str, float]:
    """Make a backlog while the target is stopped, then let it go over.

    What the same costs with one file is taken off: the start of the target, heartbeats.
    """
    alone = restart_target(volume, 1, b"")
    loaded = restart_target(volume, count, os.urandom(size))
    source, target = (max(0.0, loaded[i] - alone[i]) for i in (0, 1))
    return {
        f"source CPU us per {unit}": source / units * 1e6,
        f"target CPU us per {unit}": target / units * 1e6,
    }


@contextmanager
def volume_in(directory: str | None, keep: bool) -> Iterator[Volume]:
    """A running volume."""
    base = directory or ("/dev/shm" if os.path.isdir("/dev/shm") else None)
    data = Path(tempfile.mkdtemp(prefix="fdfs-bench-", dir=base))
    volume = Volume(data)
    try:
        volume.start()
        yield volume
    finally:
        volume.stop()
        if keep:
            click.echo(f"kept {data}", err=True)
        else:
            shutil.rmtree(data)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--directory", help="Where the servers keep their files.  [default: /dev/shm]")
@click.option("--files", default=10_000, show_default=True, help="Small files of a burst.")
@click.option("--large", default=256, show_default=True, help="MiB of large files.")
@click.option("--delays", default=100, show_default=True, help="Uploads one by one.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--keep", is_flag=True, help="Leave the files and logs of the servers.")
def main(
    directory: str | None, files: int, large: int, delays: int, as_json: bool, keep: bool
) -> None:
    """Measure what replication costs and how long it takes."""
    figures: dict[str, float] = {}
    with volume_in(directory, keep) as volume:
        parts: list[Callable[[], dict[str, float]]] = [
            lambda: measure_delay(volume, delays),
            lambda: measure_burst(volume, files),
            lambda: measure_cpu(volume, files, SMALL, "small file", files),
            lambda: measure_cpu(volume, max(1, large // 16), 16 * MIB, "MiB", max(16, large)),
        ]
        for part in parts:
            found = part()
            figures |= found
            if not as_json:
                for name, value in found.items():
                    click.echo(f"{name:<50} {value:>12,.2f}")
    if as_json:
        click.echo(json.dumps(figures))


if __name__ == "__main__":
    main()
