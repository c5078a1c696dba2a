"""What small requests cost a client: CPU time of the client's process per operation.

    python -m benchmarks.client [--count N]

A tracker and a storage run in processes of their own on loopback. An operation asks the tracker
first, so it is two round trips. Beside the two clients stand bare sockets: the two requests of
`info`, sent to the same servers and received with nothing around them. CPU time is that of the
process (user and system), in the cheapest tenth of the calls. On a busy machine all of them cost
more, because others use the caches while the process waits for an answer.
"""

from __future__ import annotations

import argparse
import os
import socket
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import trio

import fdfsfuse
from fdfsfuse import blocking
from fdfsfuse.proto.fileid import split_file_id
from fdfsfuse.proto.header import pack_header
from fdfsfuse.proto.storage import FileRequest, StorageCommand
from fdfsfuse.proto.tracker import TrackerCommand
from tests.common.cluster import Cluster

AIMS_US = {"blocking": 2 * 60, "trio": 2 * 120}
"""For the two requests of an operation."""
_WARM_UP = 50


def show(what: str, cpu_us: float, bare_us: float, aim: str = "") -> None:
    print(f"{what:<28} {cpu_us:>10.1f} {cpu_us / bare_us:>8.1f} {aim:>8}", flush=True)


def measure(count: int, one: Callable[[int], object]) -> float:
    """CPU us per call of ``one(number)``, in the cheapest batch."""
    for number in range(_WARM_UP):
        one(number)
    costs = []
    for batch in batches(count):
        before = time.process_time()
        for number in batch:
            one(number)
        costs.append((time.process_time() - before) / len(batch))
    return min(costs) * 1e6


async def measure_async(count: int, one: Callable[[int], Awaitable[object]]) -> float:
    """`measure` for coroutines."""
    for number in range(_WARM_UP):
        await one(number)
    costs = []
    for batch in batches(count):
        before = time.process_time()
        for number in batch:
            await one(number)
        costs.append((time.process_time() - before) / len(batch))
    return min(costs) * 1e6


def batches(count: int) -> list[range]:
    """The numbers of *count* calls, in up to ten parts: what other programs do only adds cost."""
    size = max(1, count // 10)
    end = _WARM_UP + count
    return [range(start, min(start + size, end)) for start in range(_WARM_UP, end, size)]


def measure_bare(cluster: Cluster, file_id: str, count: int) -> float:
    """CPU us of the round trips of `info` without a client around them."""
    group, name = split_file_id(file_id)
    body = FileRequest(group, name).encode()
    ask = pack_header(len(body), TrackerCommand.QUERY_FETCH_ONE) + body
    info = pack_header(len(body), StorageCommand.FILE_INFO) + body
    with cluster.tracker.connect() as tracker, cluster.storage().connect() as storage:
        for sock in (tracker, storage):
            sock.settimeout(None)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def exchange(_: int) -> None:
            tracker.send(ask)
            tracker.recv(4096)
            storage.send(info)
            storage.recv(4096)

        return measure(count, exchange)


def run_blocking(cluster: Cluster, count: int, bare_us: float, only: str) -> None:
    """The blocking client."""
    content = os.urandom(4096)
    ids: list[str] = []
    with blocking.Client(cluster.tracker.endpoint) as client:
        steps: list[tuple[str, Callable[[int], object]]] = [
            ("upload 4 KiB", lambda i: ids.append(client.upload(content))),
            ("download 4 KiB", lambda i: client.download(ids[i])),
            ("info", lambda i: client.info(ids[i])),
            ("set metadata", lambda i: client.set_metadata(ids[i], {"width": "1024"})),
            ("get metadata", lambda i: client.get_metadata(ids[i])),
            ("delete", lambda i: client.delete(ids[i])),
        ]
        for what, step in steps:
            if only in what or what.startswith("upload"):
                aim = f"{AIMS_US['blocking']}"
                show(f"blocking, {what}", measure(count, step), bare_us, aim)


async def run_trio(cluster: Cluster, count: int, bare_us: float, only: str) -> None:
    """The trio client."""
    content = os.urandom(4096)
    ids: list[str] = []
    async with fdfsfuse.Client(cluster.tracker.endpoint) as client:

        async def upload(_: int) -> None:
            ids.append(await client.upload(content))

        steps: list[tuple[str, Callable[[int], Awaitable[object]]]] = [
            ("upload 4 KiB", upload),
            ("download 4 KiB", lambda i: client.download(ids[i])),
            ("info", lambda i: client.info(ids[i])),
            ("set metadata", lambda i: client.set_metadata(ids[i], {"width": "1024"})),
            ("get metadata", lambda i: client.get_metadata(ids[i])),
            ("delete", lambda i: client.delete(ids[i])),
        ]
        for what, step in steps:
            if only in what or what.startswith("upload"):
                aim = f"{AIMS_US['trio']}"
                show(f"trio, {what}", await measure_async(count, step), bare_us, aim)


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="CPU time of the clients per small operation.")
    parser.add_argument("--count", type=int, default=3000, help="operations of each kind")
    parser.add_argument("--only", default="", help="only operations with this in their name")
    options = parser.parse_args(arguments)
    with (
        tempfile.TemporaryDirectory(prefix="fdfs-bench-") as directory,
        Cluster(Path(directory)) as cluster,
    ):
        with blocking.Client(cluster.tracker.endpoint) as client:
            file_id = client.upload(b"content")
        print(f"{'operation (two round trips)':<28} {'CPU us':>10} {'x bare':>8} {'aim us':>8}")
        bare_us = measure_bare(cluster, file_id, options.count)
        show("bare sockets, info", bare_us, bare_us)
        run_blocking(cluster, options.count, bare_us, options.only)
        trio.run(run_trio, cluster, options.count, bare_us, options.only)


if __name__ == "__main__":
    main()
