"""kill -9 of a storage under load: what was acknowledged is there, and nothing half-done is."""

from __future__ import annotations

import random
import socket
import threading
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from fdfs_storage.binlog import Binlog, BinlogPosition
from fdfsfuse.proto.fileid import decode_name
from tests.common.cluster import Cluster
from tests.common.plain import PlainError, exchange
from tests.daemons.storage_server import GROUP

WORKERS = 4
ROUNDS = 3


@dataclass
class Ledger:
    """What one client was told: contents by name, and what is gone; ``open`` may be either."""

    files: dict[str, bytes] = field(default_factory=dict)
    metadata: dict[str, bytes] = field(default_factory=dict)
    gone: set[str] = field(default_factory=set)
    open: set[str] = field(default_factory=set)


def group_and(name: str) -> bytes:
    return GROUP.encode().ljust(16, b"\0") + name.encode()


def work(address: tuple[str, int], seed: int, ledger: Ledger, started: threading.Event) -> None:
    """Upload, set metadata and delete until the storage dies."""
    rng = random.Random(seed)
    try:
        with socket.create_connection(address, 10) as sock:
            for number in range(1_000_000):
                content = rng.randbytes(rng.choice([10, 5000, 300_000]))
                head = b"\0" + len(content).to_bytes(8, "big") + b"bin\0\0\0"
                name = exchange(sock, 11, head + content)[16:].decode()
                ledger.files[name] = content
                if number > 5:
                    started.set()
                if rng.random() < 0.3:
                    text = b"k\x02" + str(number).encode()
                    fixed = len(name).to_bytes(8, "big") + len(text).to_bytes(8, "big") + b"O"
                    exchange(sock, 13, fixed + group_and(name) + text)
                    ledger.metadata[name] = text
                if rng.random() < 0.3:
                    victim = rng.choice(list(ledger.files))
                    ledger.open.add(victim)
                    exchange(sock, 12, group_and(victim))
                    ledger.open.discard(victim)
                    ledger.files.pop(victim)
                    ledger.gone.add(victim)
    except (OSError, EOFError):
        started.set()


def check(address: tuple[str, int], ledger: Ledger) -> None:
    """Compare with the storage what it acknowledged."""
    with socket.create_connection(address, 10) as sock:
        for name, content in ledger.files.items():
            if name in ledger.open:
                continue
            assert exchange(sock, 14, bytes(16) + group_and(name)) == content
            if name in ledger.metadata:
                assert exchange(sock, 15, group_and(name)) == ledger.metadata[name]
        for name in ledger.gone:
            with pytest.raises(PlainError) as caught:
                exchange(sock, 22, group_and(name))
            assert caught.value.status == 2


def check_disk(base: Path) -> None:
    """Every file is whole and in the binlog; no temporary file is left."""
    binlog = Binlog.open(base)
    logged = {record.name for record, _ in binlog.read(BinlogPosition(0, 0))}
    binlog.close()
    for path in base.glob("data/??/??/*"):
        name = "M00/" + str(path.relative_to(base / "data"))
        assert name in logged
        if not name.endswith("-m"):
            info = decode_name(name)
            content = path.read_bytes()
            assert (len(content), zlib.crc32(content)) == (info.size, info.crc32)
    assert list(base.glob("data/.fdfs-*")) == []


def test_kill_9_loses_nothing_and_leaves_nothing(tmp_path: Path) -> None:
    with Cluster(tmp_path, groups=(GROUP,)) as cluster:
        storage = cluster.storage(GROUP)
        address = (storage.address, storage.port)
        ledgers: list[Ledger] = []
        for round_number in range(ROUNDS):
            current = [Ledger() for _ in range(WORKERS)]
            started = [threading.Event() for _ in range(WORKERS)]
            threads = [
                threading.Thread(
                    target=work,
                    args=(address, round_number * WORKERS + i, current[i], started[i]),
                )
                for i in range(WORKERS)
            ]
            for thread in threads:
                thread.start()
            for event in started:
                assert event.wait(30)
            storage.kill()
            for thread in threads:
                thread.join(30)
            assert all(ledger.files for ledger in current)
            ledgers += current
            storage.start()
            for ledger in ledgers:
                check(address, ledger)
        storage.stop()
        check_disk(storage.base_path)
