"""What requests cost a storage: CPU time of the server per operation, and operations per second.

    python -m benchmarks.wire                        # starts a storage of its own in memory
    python -m benchmarks.wire --directory /srv/disk0 # ... on that file system
    python -m benchmarks.wire --address 10.0.0.2:23000 --pid 4711   # a running one, also the C one

CPU time is what the kernel accounted to all threads of the server (/proc/PID/task/*/schedstat),
so it holds on a busy machine too; operations per second do not. Even so it depends on the machine,
and on what else fills its caches. So each figure stands beside the *floor* of the same run: what a
server in C costs that makes the system calls which any storage has to make for the request, and
does nothing else (`floor.c`; needs a C compiler). The first lines say what servers cost that wait,
receive and send, in C and in Python (`echo.py`), there with a stat() as well, as file info needs
it: what the language alone adds.

With one connection client and storage sleep in turns. Where that leaves a processor of a virtual
machine idle, waking it for an answer can cost more than the request, and is charged to the storage.
This measures without it, as both take turns on one processor::

    taskset --cpu-list 0 python -m benchmarks.wire -c 1

File systems differ: ext4, for one, searches long for a free inode when many files were deleted
just before.
"""

from __future__ import annotations

import os
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import click
import trio

from fdfs_storage.serving.service import StorageService
from fdfs_storage.store import Store
from fdfsfuse.core.conf_file import ReservedSpace
from fdfsfuse.core.config import StorageConfig, StorePath
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
HERE = Path(__file__).parent
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
"""CPU us per operation of the C server, on another machine: there an echo in C costs less."""


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


class Row(NamedTuple):
    """Which line of the table."""

    what: str
    connections: int


class Cost(NamedTuple):
    """CPU us per operation, operations per second."""

    cpu_us: float
    per_s: float


def show(row: Row, cost: Cost, floor: Cost | None = None) -> None:
    """Print one line; *floor* is what `floor.c` costs, if that is known."""
    least = f"{floor.cpu_us:.1f}" if floor else ""
    times = f"{cost.cpu_us / floor.cpu_us:.1f}" if floor and floor.cpu_us else ""
    print(
        f"{row.what:<18} {row.connections:>11} {cost.cpu_us:>12.1f} {least:>8} {times:>8} "
        f"{C_SERVER.get(row.what, ''):>12} {cost.per_s:>12,.0f}",
        flush=True,
    )


class Bench:
    """Runs operations against a server and reads its CPU time."""

    def __init__(self, address: tuple[str, int], pid: int) -> None:
        self.address = address
        self.pid = pid

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
        units: int = 1,
    ) -> tuple[Row, Cost]:
        """Do work(client, i), an operation of so many *units*, *count* times per connection."""
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
        done = connections * count * units
        return Row(what, connections), Cost(cpu / done * 1e6, done / wall)

    def echo(self, what: str, connections: int, count: int) -> tuple[Row, Cost]:
        """Requests to which both `floor.c` and `echo.py` answer 50 bytes."""
        request = pack_header(40, StorageCommand.ACTIVE_TEST) + bytes(40)

        def exchange(client: Client, _: int) -> None:
            client.sock.sendall(request)
            client.sock.recv(100)

        return self.measure(what, connections, max(1, count // connections), exchange)

    def run(self, connections: int, count: int, large_mib: int) -> Iterator[tuple[Row, Cost]]:
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
        yield self.measure("upload 4 KiB", connections, per_connection, upload)
        yield self.measure("download 4 KiB", connections, per_connection, download)
        yield self.measure("file info", connections, per_connection, info)
        # Without metadata first: what an application's files mostly are.
        half = per_connection // 2
        yield self.measure("set metadata", connections, per_connection, set_metadata)
        yield self.measure("get metadata", connections, per_connection, get_metadata)
        yield self.measure("delete (with -m)", connections, half, delete)
        names.clear()
        yield self.measure("(upload again)", connections, half, upload)
        yield self.measure("delete", connections, half, delete)
        yield from self._run_large(connections, large_mib)

    def _run_large(self, connections: int, mib: int) -> Iterator[tuple[Row, Cost]]:
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
        yield self.measure("upload, per MiB", connections, 1, upload, units)
        yield self.measure("download, per MiB", connections, 1, download, units)
        client = Client(self.address)
        for name in names.values():
            client.call(StorageCommand.DELETE, FileRequest(GROUP, name).encode())
        client.sock.close()


@contextmanager
def started(*command: str | Path) -> Iterator[Bench]:
    """Run a server that prints its port."""
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            yield Bench(("127.0.0.1", int(process.stdout.readline())), process.pid)
        finally:
            process.terminate()


@contextmanager
def started_floor(base: str | None) -> Iterator[Bench | None]:
    """`floor.c` at work in a directory of *base*; None where there is no C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        yield None
        return
    with (
        tempfile.TemporaryDirectory(prefix="fdfs-bench-") as directory,
        tempfile.TemporaryDirectory(prefix="fdfs-bench-", dir=base) as data,
    ):
        program = f"{directory}/floor"
        subprocess.run([compiler, "-O2", "-o", program, HERE / "floor.c"], check=True)
        with started(program, data) as bench:
            yield bench


@contextmanager
def started_storage(base: str | None) -> Iterator[Bench]:
    """A storage of our own with its files in a directory of *base*."""
    with (
        tempfile.TemporaryDirectory(prefix="fdfs-bench-", dir=base) as data,
        started(sys.executable, "-m", "benchmarks.wire", "--serve", data) as bench,
    ):
        yield bench


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
        f"{'operation':<18} {'connections':>11} {'CPU us/op':>12} {'floor':>8} {'x floor':>8} "
        f"{'C server':>12} {'op/s':>12}"
    )
    base = directory or ("/dev/shm" if os.path.isdir("/dev/shm") else None)
    with ExitStack() as stack:
        floor = stack.enter_context(started_floor(base))
        for number in connections:
            if floor is not None:
                show(*floor.echo("echo in C", number, count))
            with started(sys.executable, HERE / "echo.py") as echo:
                show(*echo.echo("echo in Python", number, count))
            with started(sys.executable, HERE / "echo.py", HERE / "echo.py") as echo:
                show(*echo.echo("... with stat()", number, count))
        if address and pid:
            host, _, service = address.rpartition(":")
            storage = Bench((host, int(service)), pid)
        else:
            storage = stack.enter_context(started_storage(base))
        for number in connections:
            least = {} if floor is None else dict(floor.run(number, count, large))
            for row, cost in storage.run(number, count, large):
                show(row, cost, least.get(row))


if __name__ == "__main__":
    main()
