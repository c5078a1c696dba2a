"""What requests cost a storage: CPU time of the server per operation, and operations per second.

    python -m benchmarks.wire                        # starts a storage of its own in memory
    python -m benchmarks.wire --directory /srv/disk0 # ... on that file system
    python -m benchmarks.wire --address 10.0.0.2:23000 --pid 4711   # a running one, also the C one

CPU time is what the kernel accounted to all threads of the server (/proc/PID/task/*/schedstat),
so it holds on a busy machine too; operations per second do not. Even so it depends on the machine,
and on what else fills its caches: the first lines say what servers cost just now that wait, receive
and send, and do nothing else, in C (`echo.c`; needs a C compiler) and in Python (`echo.py`). No
server in Python can cost less than the second; the column *x echo* gives the others as multiples
of it.

File systems differ: ext4, for one, searches long for a free inode when many files were deleted
just before.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import trio

from fdfs_storage.service import StorageService
from fdfs_storage.store import Store
from fdfsfuse.core.config import ReservedSpace, StorageConfig, StorePath
from fdfsfuse.proto.header import pack_header
from fdfsfuse.proto.storage import (
    NO_CRC,
    Download,
    FileRequest,
    SetMetadata,
    StorageCommand,
    StoredFile,
    UploadHead,
)
from fdfsfuse.server.daemon import Daemon, run_daemon
from fdfsfuse.server.tcp import TcpServer, open_listeners

GROUP = "group1"
MIB = 1 << 20
C_SERVER = {
    "upload 4 KiB": "60-80",
    "download 4 KiB": "20-40",
    "file info": "10-15",
    "set metadata": "130-160",
    "get metadata": "30",
    "delete": "40-60",
    "upload, per MiB": "2800",
    "download, per MiB": "200-500",
}
"""CPU us per operation of the C server, for comparison."""


class Client:
    """A connection with as little in it as possible."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.sock = socket.create_connection(address)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buffer = bytearray(MIB)

    def call(self, command: int, body: bytes, flags: int = 0) -> bytes:
        """Send a request; returns the response's body."""
        self.sock.sendall(pack_header(len(body), command, flags) + body)
        return self.receive()

    def receive(self) -> bytes:
        data = self.sock.recv(65536)
        while len(data) < 10:
            data += self.sock.recv(65536)
        length, _, status = struct.unpack_from(">qBB", data)
        if status:
            raise OSError(status, f"status {status}")
        while len(data) < 10 + length:
            data += self.sock.recv(65536)
        return data[10:]

    def upload(self, content: bytes) -> str:
        head = UploadHead(0, len(content), "bin").encode()
        return StoredFile.decode(self.call(StorageCommand.UPLOAD, head + content)).name

    def drain(self, count: int) -> None:
        """Receive *count* bytes and forget them."""
        while count:
            count -= self.sock.recv_into(self.buffer, min(count, MIB))


@dataclass
class Result:
    """One line of the table; *echo_us* is the cost of `echo.py`, 0 where that is no measure."""

    what: str
    connections: int
    cpu_us: float
    per_s: float
    echo_us: float

    def show(self) -> None:
        times = f"{self.cpu_us / self.echo_us:.1f}" if self.echo_us else ""
        print(
            f"{self.what:<18} {self.connections:>11} {self.cpu_us:>12.1f} {times:>8} "
            f"{C_SERVER.get(self.what, ''):>12} {self.per_s:>12,.0f}",
            flush=True,
        )


class Bench:
    """Runs operations against a server and reads its CPU time.

    Args:
        echo_us: for each number of connections, what `echo.py` costs per request.
    """

    def __init__(
        self, address: tuple[str, int], pid: int, echo_us: Mapping[int, float] | None = None
    ) -> None:
        self.address = address
        self.pid = pid
        self._echo_us = echo_us or {}

    def cpu_s(self) -> float:
        """CPU seconds used so far by all threads of the server."""
        total = 0
        for task in Path(f"/proc/{self.pid}/task").iterdir():
            total += int((task / "schedstat").read_text().split()[0])
        return total / 1e9

    def measure(
        self,
        what: str,
        connections: int,
        count: int,
        work: Callable[[Client, int], None],
        units: int | None = None,
    ) -> float:
        """Do work(client, i) *count* times on each connection; returns CPU us per request, or for
        each of the *units* of large ones.
        """
        clients = [Client(self.address) for _ in range(connections)]
        start_line = threading.Barrier(connections + 1)

        def run(client: Client, number: int) -> None:
            start_line.wait()
            for i in range(count):
                work(client, number * count + i)

        threads = [
            threading.Thread(target=run, args=(client, number))
            for number, client in enumerate(clients)
        ]
        for thread in threads:
            thread.start()
        start_line.wait()
        cpu, wall = self.cpu_s(), time.perf_counter()
        for thread in threads:
            thread.join()
        cpu, wall = self.cpu_s() - cpu, time.perf_counter() - wall
        for client in clients:
            client.sock.close()
        done = connections * count * (units or 1)
        cpu_us = cpu / done * 1e6
        echo_us = self._echo_us.get(connections, 0.0) if units is None else 0.0
        Result(what, connections, cpu_us, done / wall, echo_us).show()
        return cpu_us

    def run(self, connections: int, count: int, large_mib: int) -> None:
        """All operations, one after the other."""
        content = os.urandom(4096)
        names: dict[int, str] = {}
        text = b"height\x02768\x01width\x021024"

        def upload(client: Client, i: int) -> None:
            names[i] = client.upload(content)

        def download(client: Client, i: int) -> None:
            client.call(StorageCommand.DOWNLOAD, Download(GROUP, names[i]).encode())

        def info(client: Client, i: int) -> None:
            body = FileRequest(GROUP, names[i]).encode()
            client.call(StorageCommand.FILE_INFO, body, NO_CRC)

        def set_metadata(client: Client, i: int) -> None:
            body = SetMetadata(GROUP, names[i], text).encode()
            client.call(StorageCommand.SET_METADATA, body)

        def get_metadata(client: Client, i: int) -> None:
            client.call(StorageCommand.GET_METADATA, FileRequest(GROUP, names[i]).encode())

        def delete(client: Client, i: int) -> None:
            client.call(StorageCommand.DELETE, FileRequest(GROUP, names.pop(i)).encode())

        per_connection = count // connections
        self.measure("upload 4 KiB", connections, per_connection, upload)
        self.measure("download 4 KiB", connections, per_connection, download)
        self.measure("file info", connections, per_connection, info)
        # Without metadata first: what an application's files mostly are.
        half = per_connection // 2
        self.measure("set metadata", connections, per_connection, set_metadata)
        self.measure("get metadata", connections, per_connection, get_metadata)
        self.measure("delete (with -m)", connections, half, delete)
        names.clear()
        self.measure("(upload again)", connections, half, upload)
        self.measure("delete", connections, half, delete)
        self._run_large(connections, large_mib)

    def _run_large(self, connections: int, mib: int) -> None:
        names: dict[int, str] = {}
        content = os.urandom(MIB) * (mib // connections)
        head = UploadHead(0, len(content), "bin").encode()
        head = pack_header(len(head) + len(content), StorageCommand.UPLOAD) + head

        def upload(client: Client, i: int) -> None:
            client.sock.sendall(head)
            client.sock.sendall(content)
            names[i] = StoredFile.decode(client.receive()).name

        def download(client: Client, i: int) -> None:
            body = Download(GROUP, names[i]).encode()
            client.sock.sendall(pack_header(len(body), StorageCommand.DOWNLOAD) + body)
            client.drain(10 + len(content))

        units = mib // connections
        self.measure("upload, per MiB", connections, 1, upload, units)
        self.measure("download, per MiB", connections, 1, download, units)
        client = Client(self.address)
        for name in names.values():
            client.call(StorageCommand.DELETE, FileRequest(GROUP, name).encode())


def measure_echo(connections: tuple[int, ...], count: int) -> dict[int, float]:
    """The lines to compare the others with; CPU us of `echo.py` for each number of connections."""
    here = Path(__file__).parent
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is not None:
        with tempfile.TemporaryDirectory(prefix="fdfs-bench-") as directory:
            program = f"{directory}/echo"
            subprocess.run([compiler, "-O2", "-o", program, here / "echo.c"], check=True)
            _measure_echo("echo in C", [program], connections, count)
    return _measure_echo("echo in Python", [sys.executable, here / "echo.py"], connections, count)


def _measure_echo(
    what: str, command: Sequence[str | Path], connections: tuple[int, ...], count: int
) -> dict[int, float]:
    request = pack_header(40, StorageCommand.FILE_INFO) + bytes(40)

    def exchange(client: Client, _: int) -> None:
        client.sock.sendall(request)
        client.sock.recv(100)

    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            bench = Bench(("127.0.0.1", int(process.stdout.readline())), process.pid)
            return {
                number: bench.measure(what, number, max(1, count // number), exchange)
                for number in connections
            }
        finally:
            process.kill()


def serve_alone(directory: str) -> int:
    """A storage without tracker and names, for measuring the wire commands by themselves."""
    config = StorageConfig(
        group_name=GROUP,
        base_path=directory,
        store_paths=(StorePath(directory),),
        tracker_servers=(),
        subdir_count_per_path=16,
    )

    async def main(daemon: Daemon) -> None:
        store = await Store.open(config)
        store.configure("127.0.0.1", ReservedSpace(1))
        service = StorageService(store, GROUP)
        listeners = open_listeners(["127.0.0.1"])
        server = TcpServer(service.serve, service.answer)
        async with trio.open_nursery() as nursery:
            await nursery.start(store.run)
            print(listeners[0].getsockname()[1], flush=True)
            await server.serve(listeners, stopping=daemon.stopping)
            nursery.cancel_scope.cancel()
        store.close()

    return run_daemon("bench-storage", main)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--directory", help="Where a storage of our own keeps files.  [default: /dev/shm]")
@click.option("--address", help="HOST:PORT of a running storage of group1 instead; needs --pid.")
@click.option("--pid", type=int, help="Its process id.")
@click.option("--count", default=4000, show_default=True, help="Small operations of each kind.")
@click.option("--large", default=256, show_default=True, help="MiB of the large files together.")
@click.option("--connections", "-c", multiple=True, type=int, default=(1, 8), show_default=True)
@click.option("--serve", hidden=True, help="Be the storage, in this directory.")
def main(
    directory: str | None,
    address: str | None,
    pid: int | None,
    count: int,
    large: int,
    connections: tuple[int, ...],
    serve: str | None,
) -> None:
    """Measure a storage's CPU time per request and its operations per second."""
    if serve:
        sys.exit(serve_alone(serve))
    print(
        f"{'operation':<18} {'connections':>11} {'CPU us/op':>12} {'x echo':>8} "
        f"{'C server':>12} {'op/s':>12}"
    )
    echo_us = measure_echo(connections, count)
    if address and pid:
        host, _, service = address.rpartition(":")
        for number in connections:
            Bench((host, int(service)), pid, echo_us).run(number, count, large)
        return
    base = directory or ("/dev/shm" if os.path.isdir("/dev/shm") else None)
    data = tempfile.mkdtemp(prefix="fdfs-bench-", dir=base)
    command = [sys.executable, "-m", "benchmarks.wire", "--serve", data]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        for number in connections:
            Bench(("127.0.0.1", port), process.pid, echo_us).run(number, count, large)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(10)
        shutil.rmtree(data)


if __name__ == "__main__":
    main()
