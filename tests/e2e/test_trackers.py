"""Three trackers and two storages as processes: any tracker may die, and clients go on."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import trio

from fdfsfuse.cli.main import fdfs, run
from fdfsfuse.client.address import Address
from fdfsfuse.client.client import Client
from fdfsfuse.client.cluster_view import TrackerView, look_at_trackers
from tests.common.cluster import Cluster, Daemon, Storage
from tests.common.mount import why_no_fuse
from tests.common.plain import PlainClient
from tests.common.waiting import wait_until


def views(cluster: Cluster) -> dict[str, TrackerView]:
    """What each tracker tells, by endpoint."""
    addresses = [Address(t.address, t.port) for t in cluster.trackers]
    return {str(view.address): view for view in trio.run(look_at_trackers, addresses)}


def wait_leader(cluster: Cluster) -> Daemon:
    """The leader, once all trackers that run agree on it."""
    running = {tracker.endpoint: tracker for tracker in cluster.trackers if tracker.running}

    def agreed() -> bool:
        found = views(cluster)
        leaders = {found[endpoint].leader for endpoint in running}
        return len(leaders) == 1 and leaders <= set(running)

    wait_until(agreed, "the trackers to agree on a leader", timeout_s=120)
    return running[views(cluster)[next(iter(running))].leader]


def all_clients_work(cluster: Cluster) -> None:
    """Upload and download with a plain client of each tracker that runs, and with ours."""
    for tracker in cluster.trackers:
        if tracker.running:
            with cluster.client(tracker) as client:
                file_id = client.upload(b"plain", extension="txt")
                assert client.download(file_id) == b"plain"

    async def ours() -> None:
        addresses = [Address(t.address, t.port) for t in cluster.trackers]
        async with Client(addresses, timeout_s=60) as client:
            file_id = await client.upload(b"ours")
            assert await client.download(file_id) == b"ours"
            await client.delete(file_id)

    trio.run(ours)


def founders(cluster: Cluster) -> list[str]:
    """Addresses of the storages that have a tree."""
    return [
        storage.address
        for storage in cluster.storages
        if (storage.base_path / "data" / "names").exists()
    ]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Any:
    directory = tmp_path_factory.mktemp("trackers")
    with Cluster(directory, ("group1", "group1"), trackers=3) as running:
        yield running


def test_storages_that_start_together_found_one_tree(cluster: Cluster) -> None:
    assert len(founders(cluster)) == 1
    wait_leader(cluster)
    (view, *others) = views(cluster).values()
    assert view.status is not None
    (group,) = view.status.groups
    assert [group.founder] == founders(cluster)
    assert [server.reason for server in group.servers] == ["works", "works"]
    assert all(other.status is not None and other.leader == view.leader for other in others)


def test_reads_go_to_storages_that_have_the_file_and_are_spread(cluster: Cluster) -> None:
    by_address = {(s.address, s.port): s for s in cluster.storages}

    def named(client: PlainClient, file_id: str) -> set[Storage]:
        """The storages that a tracker names for reads, one after the other."""
        return {by_address[client.find_fetch(file_id)] for _ in range(4)}

    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(cluster.client(t)) for t in cluster.trackers]
        for number in range(60):
            file_id = clients[0].upload(b"%d" % number)
            for client in clients:
                # Read at once from whoever is named: it must have the file already.
                address = client.find_fetch(file_id)
                content = client.download_from(address, *file_id.split("/", 1))
                assert content == b"%d" % number
        first = clients[0].upload(b"spread", extension="txt")
        source = by_address[clients[0].find_update(first)]
        assert source.path_of(first.partition("/")[2]).exists()

        def spread() -> bool:
            # A later change of the same source tells the trackers that the first one has arrived.
            while by_address[clients[0].find_update(clients[0].upload(b"later"))] is not source:
                pass
            return all(len(named(client, first)) == 2 for client in clients)

        wait_until(spread, "reads of the file to be spread", poll_s=0.3)
        for client in clients:
            assert by_address[client.find_update(first)] is source, "updates go to the source"
        appender = clients[0].upload(b"grows", appender=True)
        for client in clients:
            assert len(named(client, appender)) == 1, "an appender is read from its source"


@pytest.mark.parametrize("number", range(3))
def test_any_tracker_may_die(cluster: Cluster, number: int) -> None:
    tracker = cluster.trackers[number]
    tracker.kill()
    all_clients_work(cluster)
    tracker.start()
    cluster.wait_active()
    all_clients_work(cluster)


@pytest.mark.skipif(why_no_fuse() is not None, reason=str(why_no_fuse()))
def test_a_mount_goes_on_when_any_tracker_dies(cluster: Cluster, tmp_path: Path) -> None:
    with cluster.mount(tmp_path / "mnt") as mount:
        for number, tracker in enumerate(cluster.trackers):
            tracker.kill()
            file = mount.path / "group1" / f"while {number} is away"
            file.write_bytes(b"x" * 3_000_000)
            assert file.read_bytes() == b"x" * 3_000_000
            if not number:
                mount.remount()
                assert file.read_bytes() == b"x" * 3_000_000
            tracker.start()
        cluster.wait_active()


def test_a_lost_leader_is_replaced(cluster: Cluster) -> None:
    old = wait_leader(cluster)
    old.kill()
    new = wait_leader(cluster)
    assert new is not old
    all_clients_work(cluster)
    old.start()
    cluster.wait_active()
    assert wait_leader(cluster) is new, "the old one follows"


def test_a_tracker_that_lost_everything_learns_it_from_the_others(cluster: Cluster) -> None:
    with cluster.client() as client:
        stat = client.storage_states("group1")
    tracker = cluster.trackers[1]
    tracker.stop()
    shutil.rmtree(tracker.base_path / "data")
    tracker.start()
    cluster.wait_active()
    with cluster.client(tracker) as client:
        assert client.storage_states("group1") == stat
    for name in ("storage_groups_new.dat", "storage_servers_new.dat"):
        assert (tracker.base_path / "data" / name).stat().st_size > 0
    all_clients_work(cluster)


def status(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> Any:
    trackers = ",".join(tracker.endpoint for tracker in cluster.trackers)
    assert run(fdfs, "fdfs", ["status", "--json", "--tracker", trackers]) == 0
    return json.loads(capsys.readouterr().out)


def command(
    cluster: Cluster, capsys: pytest.CaptureFixture[str], *arguments: str
) -> tuple[int, str]:
    """Exit code and output."""
    code = run(fdfs, "fdfs", [*arguments, "--tracker", cluster.tracker.endpoint])
    return code, capsys.readouterr().out


def wait_well(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    """Wait until the status has nothing to say."""
    seen = ""

    def well() -> bool:
        nonlocal seen
        code, seen = command(cluster, capsys, "status", "--check")
        return code == 0

    try:
        wait_until(well, "all to be well")
    except TimeoutError as exc:
        raise TimeoutError(f"{exc}\n{seen}") from None


def test_the_life_of_a_server(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    """It is filled, seen in the status, dies, is removed, comes back empty and is filled again."""
    with cluster.client() as client:
        ids = [client.upload(b"%d" % n) for n in range(20)]
    third = cluster.add_storage("group1")
    cluster.wait_active()
    wait_leader(cluster)
    data = status(cluster, capsys)
    assert data["trackers_state"] == "ok"
    assert [tracker["leader"] for tracker in data["trackers"]].count(True) == 1
    storages = {s["id"]: s for s in data["volumes"][0]["storages"]}
    assert storages[third.address]["source"] in storages
    wait_until(lambda: all(third.path_of(i.partition("/")[2]).exists() for i in ids), "all files")

    code, out = command(cluster, capsys, "admin", "remove", "group1", third.address)
    assert code == 5
    assert f"{third.address} is ACTIVE: stop it first" in out
    third.stop()

    def offline() -> bool:
        (state,) = [
            s for s in status(cluster, capsys)["volumes"][0]["storages"] if s["id"] == third.address
        ]
        return bool(state["state"] == "OFFLINE" and "its connection ended" in state["why"])

    wait_until(offline, "the stopped server to be OFFLINE")
    assert command(cluster, capsys, "status", "--check")[0] == 6
    code, out = command(cluster, capsys, "admin", "remove", "group1", third.address, "--dry-run")
    assert code == 0, out
    assert "dry run: nothing was changed" in out
    assert "lost:" not in out
    wait_until(
        lambda: command(cluster, capsys, "admin", "remove", "group1", third.address)[0] == 0,
        "the server to be removed at every tracker",
    )
    for tracker in cluster.trackers:
        assert cluster.states(tracker)[third.address] == 4
    assert command(cluster, capsys, "admin", "forget", "group1")[0] == 0
    for tracker in cluster.trackers:
        assert third.address not in cluster.states(tracker)
    wait_well(cluster, capsys)

    shutil.rmtree(third.base_path)
    for path in third.store_paths:
        shutil.rmtree(path)
        path.mkdir()
    third.configure({})
    third.start()
    cluster.wait_active()
    wait_until(lambda: all(third.path_of(i.partition("/")[2]).exists() for i in ids), "all files")
    assert len(founders(cluster)) == 1


def test_what_removing_the_founder_would_lose(
    cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    (address,) = founders(cluster)
    founder = next(s for s in cluster.storages if s.address == address)
    founder.stop()
    wait_until(
        lambda: all(cluster.states(tracker)[address] == 5 for tracker in cluster.trackers),
        "the founder to be OFFLINE everywhere",
    )
    code, out = command(cluster, capsys, "admin", "remove", "group1", address)
    assert code == 5
    assert "its directory tree" in out
    code, out = command(cluster, capsys, "admin", "remove-group", "group1")
    assert code == 5
    assert "stop all servers of group1 first" in out
    assert cluster.states()[address] == 5, "nothing was done"
    founder.start()
    cluster.wait_active()


def test_a_tracker_that_is_down_is_named(
    cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.trackers[2].stop()
    data = status(cluster, capsys)
    assert data["trackers_state"] == "degraded"
    assert cluster.trackers[2].endpoint in data["trackers_why"]
    code, out = command(cluster, capsys, "status")
    assert code == 0
    assert f"{cluster.trackers[2].endpoint}  cannot be reached" in out
    cluster.trackers[2].start()
    cluster.wait_active()


def test_removing_a_group(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Cluster(tmp_path, ("group1", "group2")) as cluster:
        gone = cluster.storage("group2")
        gone.stop()
        wait_until(lambda: cluster.states()[gone.address] == 5, "group2 to be offline")
        code, out = command(cluster, capsys, "admin", "remove-group", "group2")
        assert code == 5
        assert "all files and names of group2" in out
        code, out = command(cluster, capsys, "admin", "remove-group", "group2", "--force")
        assert (code, out.splitlines()[-1]) == (0, "done: remove the group group2")
        volumes = status(cluster, capsys)["volumes"]
        assert [volume["name"] for volume in volumes] == ["group1"]
        assert command(cluster, capsys, "admin", "remove-group", "group2")[0] == 3
        # Its server still has everything: started again, it brings its group back.
        gone.start()
        cluster.wait_active()
