"""Servers join and leave under load: see tests/e2e/test_faults.py."""

from __future__ import annotations

import faulthandler
import random
import shutil
import time
from pathlib import Path

from tests.common.cluster import Cluster
from tests.common.ledger import Ledger
from tests.common.load import Load
from tests.e2e.test_faults import TWO, settle_and_compare


def test_servers_join_under_load(tmp_path: Path) -> None:
    ledger = Ledger()
    with Cluster(tmp_path) as cluster:
        with Load(cluster, "group1", ledger, 1) as load:
            load.wait_acknowledged(300)
            cluster.add_storage()
            cluster.wait_active()
            load.wait_acknowledged(50)
        settle_and_compare(cluster, ledger)
        with Load(cluster, "group1", ledger, 2) as load:
            third = cluster.add_storage()
            load.wait_acknowledged(50)
            cluster.wait_active()
            load.wait_acknowledged(50)
        assert third.data_files()
        settle_and_compare(cluster, ledger)


def test_kills_while_a_server_is_filled(tmp_path: Path, long_run: bool) -> None:
    """The source, the new server and a tracker, in the middle of the initial copy."""
    draw = random.Random(7)
    if long_run:
        faulthandler.cancel_dump_traceback_later()
    ledger = Ledger()
    with Cluster(tmp_path, trackers=2) as cluster:
        with Load(cluster, "group1", ledger, 1) as load:
            load.wait_acknowledged(300)
            new = cluster.add_storage()
            for _ in range(20 if long_run else 2):
                for victim in (cluster.storages[0], new, draw.choice(cluster.trackers)):
                    time.sleep(draw.uniform(0, 0.3))
                    victim.kill()
                    victim.start()
            load.wait_acknowledged(20)
        settle_and_compare(cluster, ledger)


def test_server_is_removed_under_load_and_comes_back_empty(tmp_path: Path) -> None:
    ledger = Ledger()
    with Cluster(tmp_path, groups=(*TWO, "group1"), trackers=2) as cluster:
        with Load(cluster, "group1", ledger, 1) as load:
            load.wait_acknowledged(100)
        # A server takes with it what the others do not have yet, so let it have nothing.
        cluster.wait_settled()
        leaving = cluster.storages[2]
        leaving.stop()
        with Load(cluster, "group1", ledger, 2) as load:
            load.wait_acknowledged(50)
            cluster.remove_storage(leaving)
            load.wait_acknowledged(50)
        settle_and_compare(cluster, ledger)
        for path in (leaving.base_path, *leaving.store_paths):
            shutil.rmtree(path)
            path.mkdir()
        with Load(cluster, "group1", ledger, 3) as load:
            cluster.storages.append(leaving)
            leaving.start()
            cluster.wait_active()
            load.wait_acknowledged(50)
        settle_and_compare(cluster, ledger)
