"""The checker of tests/common/ledger.py finds every kind of damage to a replica.

The load is real; the replica is a copy of the storage's directory, so replication is not needed.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.common.cluster import Cluster
from tests.common.ledger import File, Ledger, Version, compare
from tests.common.load import Load
from tests.common.plain import PlainError


@dataclass
class Replica:
    """A copy of a storage's store path."""

    name: str
    store_paths: list[Path]

    def path_of(self, file_name: str) -> Path:
        return self.store_paths[int(file_name[1:3], 16)] / "data" / file_name[4:]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Ledger, Replica]]:
    """A ledger after some load, and the storage that has all of it."""
    ledger = Ledger()
    with Cluster(tmp_path_factory.mktemp("checker")) as cluster:
        with Load(cluster, "group1", ledger, seed=1) as load:
            load.wait_acknowledged(400)
        yield ledger, Replica("source", cluster.storage().store_paths)


@pytest.fixture
def replica(loaded: tuple[Ledger, Replica], tmp_path: Path) -> Replica:
    source = loaded[1].store_paths[0]
    shutil.copytree(source / "data", tmp_path / "path0" / "data")
    return Replica("replica", [tmp_path / "path0"])


def find(ledger: Ledger, wanted: Callable[[File], bool]) -> File:
    return next(file for file in ledger.in_group("group1") if wanted(file))


def test_equal_replica_is_fine(loaded: tuple[Ledger, Replica], replica: Replica) -> None:
    ledger, source = loaded
    assert compare(ledger, "group1", [source, replica]) == []
    kinds = {line.split(" ")[0] for file in ledger.files.values() for line in file.history}
    assert kinds >= {"upload", "appender", "slave", "append", "modify", "truncate", "metadata"}
    assert [file for file in ledger.files.values() if file.data is None]


def missing(ledger: Ledger, replica: Replica) -> str:
    file = find(ledger, lambda file: file.data is not None and not file.metadata)
    replica.path_of(file.name).unlink()
    return file.name


def came_back(ledger: Ledger, replica: Replica) -> str:
    file = find(ledger, lambda file: file.data is None)
    replica.path_of(file.name).write_bytes(b"")
    return file.name


def flipped_bit(ledger: Ledger, replica: Replica) -> str:
    file = find(ledger, lambda file: len(file.data or b"") > 1000)
    path = replica.path_of(file.name)
    data = bytearray(path.read_bytes())
    data[777] ^= 1
    path.write_bytes(data)
    return file.name


def too_short(ledger: Ledger, replica: Replica) -> str:
    file = find(ledger, lambda file: file.appender and bool(file.data))
    path = replica.path_of(file.name)
    path.write_bytes(path.read_bytes()[:-1])
    return file.name


def lost_metadata(ledger: Ledger, replica: Replica) -> str:
    file = find(ledger, lambda file: bool(file.metadata))
    replica.path_of(file.name + "-m").unlink()
    return file.name


def old_metadata(ledger: Ledger, replica: Replica) -> str:
    file = find(ledger, lambda file: bool(file.metadata))
    replica.path_of(file.name + "-m").write_bytes(b"key0\x020.5")
    return file.name


def orphaned_metadata(ledger: Ledger, replica: Replica) -> str:
    file = find(ledger, lambda file: file.data is None)
    replica.path_of(file.name + "-m").write_bytes(b"key0\x020.5")
    return file.name


def unknown_file(ledger: Ledger, replica: Replica) -> str:
    file = find(ledger, lambda file: file.data is not None)
    name = f"{file.name[:-4]}_x.bin"
    replica.path_of(name).write_bytes(b"from nowhere")
    return name


@pytest.mark.parametrize(
    "damage",
    [
        missing,
        came_back,
        flipped_bit,
        too_short,
        lost_metadata,
        old_metadata,
        orphaned_metadata,
        unknown_file,
    ],
)
def test_damage_is_found(
    loaded: tuple[Ledger, Replica], replica: Replica, damage: Callable[[Ledger, Replica], str]
) -> None:
    ledger, source = loaded
    name = damage(ledger, replica)
    (problem,) = compare(ledger, "group1", [source, replica])
    assert name in problem
    assert "replica" in problem


def test_file_on_all_servers_that_nobody_uploaded(
    loaded: tuple[Ledger, Replica], replica: Replica
) -> None:
    ledger, _ = loaded
    name = unknown_file(ledger, replica)
    (problem,) = compare(ledger, "group1", [replica, replica])
    assert name in problem


def test_operation_without_answer_may_be_done_or_not() -> None:
    ledger = Ledger()
    file = ledger.uploaded("group1/M00/00/00/a", b"old", ("", 0), what="upload")
    with pytest.raises(EOFError), ledger.changing(file, "delete", Version(None)):
        raise EOFError
    assert {version.data for version in file.versions()} == {b"old", None}
    other = ledger.uploaded("group1/M00/00/00/b", b"old", ("", 0), what="upload")
    with pytest.raises(PlainError), ledger.changing(other, "delete", Version(None)):
        raise PlainError(12, 2)
    with pytest.raises(ConnectionRefusedError), ledger.changing(other, "delete", Version(None)):
        raise ConnectionRefusedError
    assert {version.data for version in other.versions()} == {b"old"}
    assert (ledger.acknowledged, ledger.unanswered) == (2, 1)
