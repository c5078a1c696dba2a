"""Read-write separation on real servers, as protocol/load-balancing.md section 7 observed it."""

from __future__ import annotations

import base64
import struct
import time
from collections.abc import Iterator

import pytest

from tests.common.cluster import ACTIVE, Cluster
from tests.common.plain import PlainError, exchange, recv_exactly
from tests.common.waiting import wait_until

GROUP = b"group1".ljust(16, b"\0")
BOTH, READ, WRITE = range(3)


@pytest.fixture(scope="module")
def separated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A group of three storages: one for both, one read only, one write only."""
    cluster = Cluster(
        tmp_path_factory.mktemp("separated"),
        groups=("group1",) * 3,
        tracker_conf={
            "use_storage_id": "true",
            "storage_ids_filename": "storage_ids.conf",
            "id_type_in_filename": "id",
        },
    )
    lines = [
        f"10000{number + 1} group1 {storage.address}:{storage.port}{rights}\n"
        for number, (storage, rights) in enumerate(
            zip(cluster.storages, ("", " rw=read", " rw=write"), strict=True)
        )
    ]
    (cluster.tracker.directory / "storage_ids.conf").write_text("".join(lines))
    try:
        start(cluster)
        yield cluster
        cluster.stop()
    finally:
        cluster.kill()


def start(cluster: Cluster) -> None:
    """The first storage alone, since one that may not be written to cannot fill the others."""
    cluster.tracker.start()
    for number, storage in enumerate(cluster.storages):
        storage.start()
        wait_until(
            lambda: list(states(cluster).values()) == [ACTIVE] * (number + 1),  # noqa: B023
            f"{number + 1} storages to be ACTIVE",
            timeout_s=60,
        )


def states(cluster: Cluster) -> dict[str, int]:
    with cluster.client() as client:
        try:
            return client.storage_states("group1")
        except PlainError:
            return {}  # there is no group before the first storage has joined


class Asker:
    """Asks the tracker, and tells storages by their place in the table."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._addresses = [storage.address for storage in cluster.storages]

    def ask(self, command: int, body: bytes = b"") -> list[int]:
        """The storages in an answer to 101, 102, 103, 105 or 106."""
        with self._cluster.tracker.connect() as sock:
            answer = exchange(sock, command, body)[16:]
        count = len(answer) // 23
        ips = [answer[23 * i : 23 * i + 15].rstrip(b"\0").decode() for i in range(count)]
        return [self._addresses.index(ip) for ip in ips]

    def upload(self, number: int, *, appender: bool = False) -> bytes:
        """The name of a new file of the storage *number*, which takes it whatever its rights."""
        with self._cluster.storages[number].connect() as sock:
            head = b"\0" + struct.pack(">q6s", 7, b"txt")
            return exchange(sock, 23 if appender else 11, head + b"content")[16:]

    def has(self, number: int, name: bytes) -> bool:
        with self._cluster.storages[number].connect() as sock:
            body = GROUP + name
            sock.sendall(struct.pack(">qBB", len(body), 22, 3) + body)
            length, _, status = struct.unpack(">qBB", recv_exactly(sock, 10))
            recv_exactly(sock, length)
            return bool(status == 0)


def seconds_in(name: bytes) -> int:
    return int.from_bytes(base64.urlsafe_b64decode(name[10:37] + b"=")[4:8], "big")


def test_uploads_go_to_those_that_may_be_written_to(separated: Cluster) -> None:
    asker = Asker(separated)
    assert sorted(asker.ask(101)[0] for _ in range(4)) == [BOTH, BOTH, WRITE, WRITE]
    assert asker.ask(106) == [BOTH, WRITE]


def test_files_are_read_where_that_is_allowed_and_changed_at_their_source(
    separated: Cluster,
) -> None:
    asker = Asker(separated)
    name = asker.upload(WRITE)
    file = GROUP + name
    assert asker.ask(102, file) == [BOTH], "the default server, until another is known to have it"
    assert asker.ask(103, file) == [WRITE]
    wait_until(
        lambda: asker.has(READ, name) and asker.has(BOTH, name),
        "the file to be replicated",
        timeout_s=60,
    )
    # A later change that has arrived, by the seconds in the names, tells that this one has as well.
    wait_until(lambda: int(time.time()) > seconds_in(name), "the next second")
    later = asker.upload(WRITE)

    def is_read_at(number: int) -> bool:
        return number in {asker.ask(102, file)[0] for _ in range(2)}

    wait_until(lambda: asker.has(READ, later), "the later file to be replicated", timeout_s=60)
    wait_until(lambda: is_read_at(READ), "the read-only storage to be named", timeout_s=60)
    assert WRITE not in asker.ask(105, file)
    assert asker.ask(103, file) == [WRITE]


def test_appenders_of_a_source_that_is_not_read_come_from_the_default_server(
    separated: Cluster,
) -> None:
    asker = Asker(separated)
    file = GROUP + asker.upload(WRITE, appender=True)
    assert asker.ask(102, file) == asker.ask(105, file) == [BOTH]
    assert asker.ask(103, file) == [WRITE]
