"""What clients ask whom, without any client: plans are fed with results and errors."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from fdfsfuse.client.address import Address, address_mapper
from fdfsfuse.client.plans.changing import ChangePlans
from fdfsfuse.client.plans.reading import ReadPlans
from fdfsfuse.client.plans.running import Running
from fdfsfuse.client.plans.steps import Ask, Plan, Request, Send
from fdfsfuse.client.plans.trackers import TrackerPlans
from fdfsfuse.client.sources import open_source
from fdfsfuse.errors import (
    ConnectFailed,
    ConnectionBroken,
    ConnectionProblem,
    FdfsError,
    StatusError,
    UsageError,
)
from fdfsfuse.proto.storage import FileInfo, StorageCommand, StoredFile
from fdfsfuse.proto.tracker import (
    Endpoint,
    FileTargets,
    StoreTarget,
    StoreTargets,
    TrackerCommand,
)

NAME = "M00/00/00/fwAAC2sC71qAc1b5AAAACw1KEYU551.txt"
APPENDER = "M00/00/00/fwAAC2sC71yEb4YYAAAAACWd5eY757.log"
TRACKERS = (Address("t1", 22122), Address("t2", 22122))
ENDPOINTS = tuple(Endpoint(f"10.0.0.{number}", 23000) for number in (1, 2, 3))
A, B, C = (Address(endpoint.ip, endpoint.port) for endpoint in ENDPOINTS)
INFO = FileInfo(5, 7, 9, "10.0.0.1").encode(16)


def broken(*, stale: bool = False, unsent: bool = False) -> ConnectionBroken:
    error = ConnectionBroken("it broke")
    error.stale, error.unsent = stale, unsent
    return error


class Cluster:
    """Answers the steps of plans. ``storages``: what each address answers, the errors raised."""

    def __init__(self) -> None:
        self.storages: dict[Address, Any] = {}
        self.failing_trackers: dict[Address, Exception] = {}
        self.asked: list[tuple[int, Address]] = []
        self.first = 0
        trackers = TrackerPlans(TRACKERS)
        self.reading = ReadPlans(trackers)
        self.changing = ChangePlans(trackers, self.reading)

    def run(self, plan: Plan[Any]) -> Any:
        running = Running("test", plan)
        step = running.resume()
        while step is not None:
            assert isinstance(step, Request)
            try:
                result = self._answer(step)
            except FdfsError as exc:
                step = running.fail(step, exc)
            else:
                step = running.resume(result)
        return running.result

    def _answer(self, step: Request) -> Any:
        self.asked.append((int(step.command), step.address))
        if step.address in TRACKERS:
            assert isinstance(step, Ask)
            assert step.repeatable
            assert step.limit_s
            if step.address in self.failing_trackers:
                raise self.failing_trackers[step.address]
            return self._track(step)
        answer = self.storages[step.address]
        if isinstance(answer, list):
            answer = answer.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _track(self, step: Ask) -> bytes:
        if step.command == TrackerCommand.QUERY_STORE_ONE:
            return StoreTarget("group1", ENDPOINTS[self.first], 3).encode(16)
        if step.command == TrackerCommand.QUERY_STORE_ALL_IN_GROUP:
            return StoreTargets("group1", ENDPOINTS, 3).encode(46)
        if step.command == TrackerCommand.QUERY_FETCH_ALL:
            return FileTargets("group1", ENDPOINTS).encode(16)
        return FileTargets("group1", ENDPOINTS[:1]).encode(46)

    def storages_asked(self) -> list[Address]:
        return [address for _, address in self.asked if address not in TRACKERS]


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


def upload(cluster: Cluster, content: bytes | Iterator[bytes], size: int | None = None) -> Any:
    opened = open_source(content, size)
    return cluster.run(
        cluster.changing.upload(opened, "txt", None, None, appender=False, replicas=1)
    )


def test_reading_goes_on_with_the_others(cluster: Cluster) -> None:
    cluster.storages = {A: broken(), B: StatusError(errno.ENOENT), C: INFO}
    assert cluster.run(cluster.reading.info(f"group1/{NAME}", 0)).size == 5
    assert cluster.storages_asked() == [A, B, C]


def test_the_first_problem_is_told_when_nobody_can(cluster: Cluster) -> None:
    cluster.storages = {A: ConnectFailed("no A"), B: StatusError(errno.ENOENT), C: broken()}
    with pytest.raises(ConnectFailed, match="no A"):
        cluster.run(cluster.reading.info(f"group1/{NAME}", 0))


def test_a_refusal_is_final(cluster: Cluster) -> None:
    cluster.storages = {A: StatusError(errno.EINVAL)}
    with pytest.raises(StatusError):
        cluster.run(cluster.reading.info(f"group1/{NAME}", 0))
    assert cluster.storages_asked() == [A]


def test_a_stale_connection_is_tried_again_once(cluster: Cluster) -> None:
    cluster.storages = {A: [broken(stale=True), INFO]}
    assert cluster.run(cluster.reading.info(f"group1/{NAME}", 0)).size == 5
    assert cluster.storages_asked() == [A, A]


@pytest.mark.parametrize(
    ("change", "command"),
    [
        (lambda plans: plans.delete(f"group1/{NAME}"), StorageCommand.DELETE),
        (lambda plans: plans.truncate(f"group1/{APPENDER}", 1), StorageCommand.TRUNCATE),
        (lambda plans: plans.regenerate(f"group1/{APPENDER}"), StorageCommand.REGENERATE),
        (
            lambda plans: plans.append(f"group1/{APPENDER}", open_source(b"x")),
            StorageCommand.APPEND,
        ),
        (
            lambda plans: plans.set_metadata(f"group1/{NAME}", {}, merge=True),
            StorageCommand.SET_METADATA,
        ),
    ],
)
def test_changes_are_sent_again_only_when_they_cannot_have_happened(
    cluster: Cluster, change: Callable[[ChangePlans], Plan[Any]], command: int
) -> None:
    cluster.storages = {A: broken(stale=True)}
    with pytest.raises(ConnectionBroken):
        cluster.run(change(cluster.changing))
    assert cluster.asked[-1] == (command, A)
    assert cluster.storages_asked() == [A]
    stored = StoredFile("group1", NAME).encode()
    cluster.storages = {A: [broken(stale=True, unsent=True), stored]}
    cluster.run(change(cluster.changing))
    assert cluster.storages_asked() == [A, A, A]


def test_uploads_go_elsewhere_when_nothing_can_have_happened(cluster: Cluster) -> None:
    stored = StoredFile("group1", NAME).encode()
    cluster.storages = {A: ConnectFailed("no A"), B: broken(unsent=True), C: stored}
    assert upload(cluster, b"content") == f"group1/{NAME}"
    # The tracker names A again and again; the others come from its list.
    assert cluster.storages_asked() == [A, B, C]
    cluster.storages = {A: broken()}
    with pytest.raises(ConnectionBroken):
        upload(cluster, b"content")
    cluster.storages = dict.fromkeys((A, B, C), ConnectFailed("nobody"))
    with pytest.raises(ConnectFailed):
        upload(cluster, b"content")


def test_an_iterator_is_not_sent_twice(cluster: Cluster) -> None:
    cluster.storages = {A: broken(stale=True, unsent=True)}
    with pytest.raises(ConnectionBroken):
        upload(cluster, iter([b"content"]), 7)
    assert cluster.storages_asked() == [A]
    cluster.storages = {A: ConnectFailed("no A"), B: StoredFile("group1", NAME).encode()}
    assert upload(cluster, iter([b"content"]), 7) == f"group1/{NAME}"


def test_the_store_path_of_the_tracker_is_used(cluster: Cluster) -> None:
    plan = cluster.changing.upload(open_source(b"x"), "", None, None, appender=True, replicas=1)
    next(plan)
    step = plan.send(StoreTarget("group1", ENDPOINTS[0], 3).encode(16))
    assert isinstance(step, Send)
    assert (step.address, step.command, step.head[0]) == (A, StorageCommand.UPLOAD_APPENDER, 3)


def test_trackers_take_turns_only_when_one_fails(cluster: Cluster) -> None:
    first, second = TRACKERS
    cluster.storages = {A: INFO}
    cluster.failing_trackers = {first: ConnectionProblem("no answer")}
    cluster.run(cluster.reading.info(f"group1/{NAME}", 0))
    cluster.run(cluster.reading.info(f"group1/{NAME}", 0))
    asked = [address for _, address in cluster.asked if address in TRACKERS]
    assert asked == [first, second, second]
    cluster.failing_trackers[second] = ConnectionProblem("neither")
    with pytest.raises(ConnectionProblem, match="no tracker answers"):
        cluster.run(cluster.reading.info(f"group1/{NAME}", 0))


def test_address_maps() -> None:
    find = address_mapper({"10.0.0.1": "nat", "10.0.0.2:23000": "nat:9000", "::1": "[fe80::1]"})
    assert find(A) == Address("nat", 23000)
    assert find(B) == Address("nat", 9000)
    assert find(B._replace(port=1)) == B._replace(port=1)
    assert find(Address("::1", 5)) == Address("fe80::1", 5)
    assert find(C) == C
    assert address_mapper(None)(A) == A
    assert address_mapper(lambda address: address._replace(port=1))(A) == A._replace(port=1)
    with pytest.raises(UsageError, match="has a port, but"):
        address_mapper({"10.0.0.1": "nat:9000"})
