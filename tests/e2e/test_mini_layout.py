"""What ``fdfs mini`` decides and writes, without starting anything."""

from __future__ import annotations

import contextlib
import json
import socket
from pathlib import Path
from typing import Any

import pytest

from fdfsfuse.cli.mini_layout import (
    Plan,
    Server,
    busy_address,
    hold,
    make_plan,
    read_plan,
    storage_conf,
    tracker_conf,
    write_confs,
)
from fdfsfuse.client.address import Address
from fdfsfuse.core.load_config import load_storage_config, load_tracker_config
from fdfsfuse.errors import ConfigError
from tests.common.addresses import loopback_network

PLAN = Plan(
    Address("127.0.0.2", 22122),
    (
        Server("group1", "group1", Address("127.0.0.3", 23000)),
        Server("group2", "group2", Address("127.0.0.4", 23000)),
    ),
)


def plan(
    old: Plan | None = None,
    *,
    volumes: int | None = None,
    replicas: int | None = None,
    port: int | None = None,
    first: str | None = None,
) -> Plan:
    return make_plan(old, volumes=volumes, replicas=replicas, first=first, port=port)


def hosts(plan: Plan) -> dict[str, str]:
    return {server.name: server.at.host for server in plan.storages}


def test_default_plan_has_two_volumes_on_usual_addresses() -> None:
    new = plan(port=22122)
    assert new.volumes == ("group1", "group2")
    assert new.tracker.host == "127.0.0.2"
    assert hosts(new) == {"group1": "127.0.0.3", "group2": "127.0.0.4"}
    assert {server.at.port for server in new.storages} == {22123}


def test_volumes_of_two_storages() -> None:
    new = plan(port=22122, replicas=2)
    assert new.volumes == ("group1", "group2")
    assert hosts(new) == {
        "group1": "127.0.0.3",
        "group1-2": "127.0.0.4",
        "group2": "127.0.0.5",
        "group2-2": "127.0.0.6",
    }
    assert [server.name for server in new.of_volume("group2")] == ["group2", "group2-2"]


def test_ports_in_use_are_passed_over() -> None:
    network = loopback_network()
    with socket.socket() as tracker, socket.socket() as storage:
        tracker.bind((f"{network}.2", 22122))
        tracker.listen()
        storage.bind((f"{network}.4", 23000))
        storage.listen()
        new = plan(first=f"{network}.2")
        assert new.tracker.port == 22123
        # All storages have the same port, so that of the second one decides for both.
        assert {server.at.port for server in new.storages} == {23001}
        assert busy_address(new) is None
        assert busy_address(plan(first=f"{network}.2", port=22122)) == new.tracker._replace(
            port=22122
        )


def test_ports_of_a_run_that_starts_are_passed_over() -> None:
    """Its servers do not listen yet."""
    network = loopback_network()
    with contextlib.ExitStack() as held:
        one = plan(first=f"{network}.2")
        assert hold(one, held)
        other = plan(first=f"{network}.2")
        assert other.tracker.port == 22123
        assert {server.at.port for server in other.storages} == {23001}
        assert busy_address(one) == one.tracker
        with contextlib.ExitStack() as late:
            assert not hold(one, late)
            assert hold(other, late)
    assert busy_address(one) is None
    assert plan(first=f"{network}.2") == one


@pytest.mark.parametrize("first", ["10.0.0.1", "127.255.255.254", "localhost", "::1"])
def test_addresses_are_loopback(first: str) -> None:
    with pytest.raises(ConfigError, match=r"127\.0\.0\.0/8|no IPv4 address"):
        plan(volumes=3, first=first)


@pytest.mark.parametrize("replicas", [1, 3])
def test_plan_survives_its_file(tmp_path: Path, replicas: int) -> None:
    assert read_plan(tmp_path / "mini.json") is None
    new = plan(PLAN, replicas=replicas)
    write_confs(new, tmp_path)
    assert read_plan(tmp_path / "mini.json") == new


def test_plan_of_version_1_is_read(tmp_path: Path) -> None:
    old = {
        "version": 1,
        "tracker": ["127.0.0.2", 22122],
        "volumes": {"group1": ["127.0.0.3", 23000], "group2": ["127.0.0.4", 23000]},
    }
    (tmp_path / "mini.json").write_text(json.dumps(old))
    assert read_plan(tmp_path / "mini.json") == PLAN


def test_old_plan_stays_and_may_grow() -> None:
    assert plan(PLAN) == PLAN
    assert plan(PLAN, volumes=2, replicas=1, first="127.0.0.2", port=22122) == PLAN
    grown = plan(PLAN, volumes=3)
    assert grown.volumes == ("group1", "group2", "group3")
    assert grown.storages[:2] == PLAN.storages
    assert hosts(grown)["group3"] == "127.0.0.5"


def test_old_plan_may_get_replicas() -> None:
    grown = plan(plan(PLAN, replicas=2), volumes=3)
    assert [server.name for server in grown.storages] == [
        *("group1", "group1-2", "group2", "group2-2", "group3", "group3-2")
    ]
    # Who was there keeps its address, and nobody shares one.
    assert hosts(grown).items() >= hosts(PLAN).items()
    assert len(set(hosts(grown).values())) == 6
    assert plan(grown) == grown


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"volumes": 1}, "there are 2 volumes here, not 1"),
        ({"replicas": 1}, "there are 2 storages in a volume here, not 1"),
        ({"first": "127.0.0.9"}, "--address cannot be changed"),
        ({"port": 22200}, "belong to port 22122"),
    ],
)
def test_old_plan_cannot_be_bent(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        plan(plan(PLAN, replicas=2), **changes)


@pytest.mark.parametrize(
    "change",
    [
        {"version": 3},
        {"tracker": ["127.0.0.2", 0]},
        {"tracker": ["127.0.0.2", "22122"]},
        {"tracker": ["8.8.8.8", 22122]},
        {"volumes": {}},
        {"volumes": {"../../etc": [["127.0.0.3", 23000]]}},
        {"volumes": {"tracker": [["127.0.0.3", 23000]]}},
        {"volumes": {"group1": []}},
        {"volumes": {"group1": ["127.0.0.3", 23000]}},
        {"volumes": ["group1"]},
    ],
)
def test_damaged_plan_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    path = tmp_path / "mini.json"
    path.write_text(json.dumps({**json.loads(PLAN.to_json()), **change}))
    with pytest.raises(ConfigError, match=r"mini\.json|127\.0\.0\.0/8"):
        read_plan(path)


def test_configuration_files_are_what_the_daemons_read(tmp_path: Path) -> None:
    write_confs(PLAN, tmp_path)

    def read(path: str) -> bytes:
        return Path(path).read_bytes()

    tracker, warnings = load_tracker_config(str(tmp_path / "tracker.conf"), read)
    assert not warnings
    assert (tracker.bind_addr, tracker.port) == (("127.0.0.2",), 22122)
    assert tracker.base_path == str(tmp_path / "tracker")
    storage, warnings = load_storage_config(str(tmp_path / "group2.conf"), read)
    assert not warnings
    assert (storage.group_name, storage.bind_addr, storage.port) == (
        "group2",
        ("127.0.0.4",),
        23000,
    )
    assert storage.store_paths[0].path == str(tmp_path / "group2")
    # A storage that reports less often than the tracker looks would be taken for dead.
    assert storage.heart_beat_interval_s < tracker.check_active_interval_s / 2
    assert tracker_conf(PLAN, tmp_path).endswith("\n")
    assert storage_conf(PLAN, PLAN.storages[0], tmp_path).endswith("\n")
