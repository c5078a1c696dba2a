"""Both clients go on when a server of a volume dies, as a user of an application sees it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

import fdfsfuse
from fdfsfuse import blocking
from fdfsfuse.client.address import Address
from fdfsfuse.errors import ConnectFailed
from tests.common.cluster import Cluster

CONTENT = os.urandom(100_000)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A volume with two storages, and two trackers."""
    directory = tmp_path_factory.mktemp("pair")
    with Cluster(directory, groups=("group1", "group1"), trackers=2) as cluster:
        yield cluster


def trackers(cluster: Cluster) -> list[str | Address]:
    return [tracker.endpoint for tracker in cluster.trackers]


def test_a_storage_dies(pair: Cluster, tmp_path: Path) -> None:
    """The tracker hands it out for a while; nobody notices but by the time it takes."""
    with blocking.Client(trackers(pair), timeout_s=60) as client:
        ids = [client.upload(CONTENT, metadata={"a": "b"}, replicas=2) for _ in range(4)]
        appender = client.upload(b"one", appender=True, replicas=2)
        sources = {client.info(file_id).source for file_id in ids}
        assert sources == {storage.address for storage in pair.storages}
        dead = pair.storages[0]
        dead.kill()
        for file_id in ids:
            assert client.download(file_id, verify=True) == CONTENT
            assert client.info(file_id).size == len(CONTENT)
            assert client.get_metadata(file_id) == {"a": "b"}
            assert client.exists(file_id)
        client.download_to(ids[0], tmp_path / "copy", verify=True)
        new = [client.upload(CONTENT) for _ in range(4)]
        assert client.download(appender) == b"one"

        async def use_trio() -> None:
            async with fdfsfuse.Client(trackers(pair), timeout_s=60) as other:
                for file_id in ids + new:
                    assert await other.download(file_id, verify=True) == CONTENT
                new.append(await other.upload(CONTENT))

        trio.run(use_trio)
        assert client.download(new[-1]) == CONTENT
        dead.start()
        pair.wait_active()


def test_a_tracker_dies(pair: Cluster) -> None:
    with blocking.Client(trackers(pair), timeout_s=60) as client:
        file_id = client.upload(CONTENT)
        pair.trackers[0].kill()
        assert client.download(file_id, verify=True) == CONTENT
        client.delete(client.upload(CONTENT))
        with blocking.Client(pair.trackers[0].endpoint) as lonely, pytest.raises(ConnectFailed):
            lonely.download(file_id)
        pair.trackers[0].start()
        pair.wait_active()
