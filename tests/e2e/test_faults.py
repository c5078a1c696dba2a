"""Servers die and networks fail under load: what was acknowledged is on every server afterwards.

The load is that of tests/common/load.py; when the group has come to rest, the checker of
tests/common/ledger.py compares every acknowledged operation with the disk of every server.
"""

from __future__ import annotations

import faulthandler
import random
import time
from pathlib import Path

import pytest

from tests.common.cluster import Cluster, Storage
from tests.common.ledger import Ledger, assert_everywhere
from tests.common.load import Load
from tests.common.network import Condition

TWO = ("group1", "group1")
LONG = 20
"""With --long tests do so many times as much, from a seed that is new at each run."""


@pytest.fixture
def seed(request: pytest.FixtureRequest, long_run: bool) -> int:
    """The test's parameter; printed, so that a test that failed tells it."""
    seed = int(request.param)
    if long_run:
        seed = random.SystemRandom().randrange(10**6)
        faulthandler.cancel_dump_traceback_later()
    print(f"seed {seed}")
    return seed


def settle_and_compare(cluster: Cluster, ledger: Ledger) -> None:
    """Wait until the group rests, then compare every server with the ledger."""
    cluster.wait_active()
    cluster.wait_settled()
    assert_everywhere(ledger, "group1", cluster.storages)


@pytest.mark.parametrize("seed", [1, 2, 3, 4], indirect=True)
def test_kills_of_any_server(tmp_path: Path, seed: int, long_run: bool) -> None:
    """kill -9 of a source, a target or a tracker at random moments, and of both storages."""
    draw = random.Random(seed)
    ledger = Ledger()
    with Cluster(tmp_path, groups=TWO, trackers=2) as cluster:
        for number in range(5 * LONG if long_run else 5):
            victims = [draw.choice([*cluster.storages, *cluster.storages, *cluster.trackers])]
            if draw.random() < 0.2:
                victims = list(cluster.storages)
            print(f"round {number}: {[victim.name for victim in victims]}")
            with Load(cluster, "group1", ledger, seed * 1000 + number) as load:
                load.wait_acknowledged(draw.randrange(5, 60))
                time.sleep(draw.uniform(0, 0.05))
                for victim in victims:
                    victim.kill()
                if len(victims) == 1 and draw.random() < 0.5:
                    load.wait_acknowledged(draw.randrange(1, 30))
                for victim in victims:
                    victim.start()
            settle_and_compare(cluster, ledger)


@pytest.mark.parametrize(
    "condition",
    [
        pytest.param(Condition(cut=True), id="cut"),
        pytest.param(Condition(stalled=True), id="stalled"),
        pytest.param(Condition(bytes_per_s=2e6, delay_s=0.01), id="slow"),
    ],
)
def test_network_fails_and_comes_back(tmp_path: Path, condition: Condition) -> None:
    """Between the storages, and between a storage and its tracker, under load."""
    ledger = Ledger()
    with Cluster(tmp_path, groups=TWO, network=True) as cluster:
        first, second = cluster.storages
        for number, (one, other) in enumerate(((first, second), (first, cluster.tracker))):
            with Load(cluster, "group1", ledger, number) as load:
                load.wait_acknowledged(30)
                cluster.network.set(one, other, condition)
                load.wait_acknowledged(50)
                cluster.network.heal()
                load.wait_acknowledged(10)
            settle_and_compare(cluster, ledger)


def test_server_dies_while_the_network_stands_still(tmp_path: Path) -> None:
    """What was under way to it is not lost, and its peer does not wait for the dead connection."""
    ledger = Ledger()
    with Cluster(tmp_path, groups=TWO, network=True) as cluster:
        first, second = cluster.storages
        with Load(cluster, "group1", ledger, 5) as load:
            load.wait_acknowledged(30)
            cluster.network.stall(first, second)
            load.wait_acknowledged(30)
            second.kill()
            cluster.network.heal()
            load.wait_acknowledged(30)
            second.start()
        settle_and_compare(cluster, ledger)


# --- files that are damaged or lost -------------------------------------------------------------


def tear_binlog(storage: Storage) -> None:
    """Leave a part of a line at the end, as a crash of the machine may."""
    sync = storage.base_path / "data" / "sync"
    with open(max(sync.glob("binlog.[0-9]*")), "ab") as file:
        file.write(b"1795352879 C M00/00/00/fwAAFWsC6S-A")


def lose_marks(storage: Storage) -> None:
    """Lose the mark files: everything is sent again."""
    marks = list((storage.base_path / "data" / "sync").glob("*.mark"))
    assert marks
    for path in marks:
        path.unlink()


def empty_marks(storage: Storage) -> None:
    """Marks without content, as after a loss of power."""
    for path in (storage.base_path / "data" / "sync").glob("*.mark"):
        path.write_bytes(b"")


def old_marks(storage: Storage) -> None:
    """Marks that are further back than what was sent."""
    for path in (storage.base_path / "data" / "sync").glob("*.mark"):
        lines = path.read_text().splitlines()
        path.write_text(
            "".join(
                "binlog_offset=0\n" if line.startswith("binlog_offset=") else f"{line}\n"
                for line in lines
            )
        )


def test_damaged_files_of_replication(tmp_path: Path) -> None:
    ledger = Ledger()
    with Cluster(tmp_path, groups=TWO) as cluster:
        for number, damage in enumerate((tear_binlog, lose_marks, empty_marks, old_marks)):
            print(damage.__name__)
            storage = cluster.storages[number % 2]
            with Load(cluster, "group1", ledger, number) as load:
                load.wait_acknowledged(60)
                storage.kill()
                damage(storage)
                load.wait_acknowledged(20)
                storage.start()
            settle_and_compare(cluster, ledger)
