"""What ``fdfs mini`` decides and writes, without starting anything."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from fdfsfuse.cli.mini_layout import (
    Plan,
    busy_address,
    make_plan,
    read_plan,
    storage_conf,
    tracker_conf,
    write_confs,
)
from fdfsfuse.client.address import Address
from fdfsfuse.core.config import load_storage_config, load_tracker_config
from fdfsfuse.errors import ConfigError
from tests.common.cluster import loopback_network

PLAN = Plan(
    Address("127.0.0.2", 22122),
    ("group1", "group2"),
    (Address("127.0.0.3", 23000), Address("127.0.0.4", 23000)),
)


def new_plan(volumes: int | None = None, port: int | None = None, first: str | None = None) -> Plan:
    return make_plan(None, volumes=volumes, first=first, port=port)


def test_default_plan_has_two_volumes_on_usual_addresses() -> None:
    plan = new_plan(port=22122)
    assert plan.volumes == ("group1", "group2")
    assert plan.tracker.host == "127.0.0.2"
    assert [at.host for at in plan.storages] == ["127.0.0.3", "127.0.0.4"]
    assert {at.port for at in plan.storages} == {22123}


def test_ports_in_use_are_passed_over() -> None:
    network = loopback_network()
    with socket.socket() as tracker, socket.socket() as storage:
        tracker.bind((f"{network}.2", 22122))
        tracker.listen()
        storage.bind((f"{network}.4", 23000))
        storage.listen()
        plan = new_plan(first=f"{network}.2")
        assert plan.tracker.port == 22123
        # All storages have the same port, so that of the second one decides for both.
        assert {at.port for at in plan.storages} == {23001}
        assert busy_address(plan) is None
        assert busy_address(new_plan(first=f"{network}.2", port=22122)) == plan.tracker._replace(
            port=22122
        )


@pytest.mark.parametrize("first", ["10.0.0.1", "127.255.255.254", "localhost", "::1"])
def test_addresses_are_loopback(first: str) -> None:
    with pytest.raises(ConfigError, match=r"127\.0\.0\.0/8|no IPv4 address"):
        new_plan(volumes=3, first=first)


def test_plan_survives_its_file(tmp_path: Path) -> None:
    assert read_plan(tmp_path / "mini.json") is None
    write_confs(PLAN, tmp_path)
    assert read_plan(tmp_path / "mini.json") == PLAN


def test_old_plan_stays_and_may_grow() -> None:
    assert make_plan(PLAN, volumes=None, first=None, port=None) == PLAN
    assert make_plan(PLAN, volumes=2, first="127.0.0.2", port=22122) == PLAN
    grown = make_plan(PLAN, volumes=3, first=None, port=None)
    assert grown.volumes == ("group1", "group2", "group3")
    assert grown.storages == (*PLAN.storages, Address("127.0.0.5", 23000))


@pytest.mark.parametrize(
    ("volumes", "first", "port", "text"),
    [
        (1, None, None, "there are 2 volumes here, not 1"),
        (None, "127.0.0.9", None, "--address cannot be changed"),
        (None, None, 22200, "belong to port 22122"),
    ],
)
def test_old_plan_cannot_be_bent(
    volumes: int | None, first: str | None, port: int | None, text: str
) -> None:
    with pytest.raises(ConfigError, match=text):
        make_plan(PLAN, volumes=volumes, first=first, port=port)


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"tracker": ["127.0.0.2", 0]},
        {"tracker": ["127.0.0.2", "22122"]},
        {"tracker": ["8.8.8.8", 22122]},
        {"volumes": {}},
        {"volumes": {"../../etc": ["127.0.0.3", 23000]}},
        {"volumes": {"tracker": ["127.0.0.3", 23000]}},
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
    assert storage_conf(PLAN, 0, tmp_path).endswith("\n")
