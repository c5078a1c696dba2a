"""Messages of storages and trackers: a table for both directions, captured ones, and garbage."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fdfsfuse.errors import ProtocolError, UsageError
from fdfsfuse.proto.address import decode_address, encode_address
from fdfsfuse.proto.cluster import (
    NO_SERVER,
    Brief,
    Changes,
    DiskReport,
    Join,
    Joined,
    ServerKey,
    StatusReport,
    SyncReport,
    SyncSource,
    decode_optional_source,
)
from fdfsfuse.proto.parameters import Parameters
from fdfsfuse.proto.storage_identity import (
    MyIpRequest,
    ServerQuery,
    StorageIdsPart,
    StorageIdsRequest,
    decode_port,
)
from fdfsfuse.proto.tracker import ServerStatus
from fdfsfuse.proto.tracker_peers import TrackerStatus
from tests.common.vectors import CLIENT, CLUSTER, Vector, named


class Message(Protocol):
    def encode(self) -> bytes: ...


def text(value: str, size: int) -> bytes:
    return value.encode().ljust(size, b"\0")


def i32(value: int) -> bytes:
    return value.to_bytes(4, "big", signed=True)


def i64(value: int) -> bytes:
    return value.to_bytes(8, "big", signed=True)


BRIEF = Brief(ServerStatus.ACTIVE, 23000, "10.0.0.1", "10.0.0.1")
BRIEF_BYTES = b"\7" + i32(23000) + text("10.0.0.1", 16) + text("10.0.0.1", 46)
JOIN = Join(
    group="group1",
    port=23000,
    store_path_count=2,
    subdir_count_per_path=256,
    upload_priority=10,
    join_time=1,
    up_time=2,
    version="6.16.1",
    init_flag=True,
    status=-1,
    storage_id="100001",
    tracker_ip="10.0.0.2",
    trackers=("10.0.0.2:22122", "[2001:db8::1]:22122"),
)

TABLE: list[tuple[Message, Callable[[bytes], object], bytes]] = [
    (BRIEF, Brief.decode, BRIEF_BYTES),
    (NO_SERVER, Brief.decode, bytes(67)),
    (SyncSource("10.0.0.1", 5), SyncSource.decode, text("10.0.0.1", 16) + i64(5)),
    (SyncSource(), SyncSource.decode, bytes(24)),
    (MyIpRequest("group1", 23000), MyIpRequest.decode, text("group1", 17) + i32(23000)),
    (
        ServerQuery("group1", "10.0.0.1", 23000),
        ServerQuery.decode,
        text("group1", 16) + b"10.0.0.1:23000",
    ),
    (ServerQuery("g", "2001:db8::1", 1), ServerQuery.decode, text("g", 16) + b"[2001:db8::1]:1"),
    (ServerKey("group1", "1"), ServerKey.decode, text("group1", 16) + text("1", 16)),
    (StorageIdsRequest(3, True), StorageIdsRequest.decode, i32(3) + b"\1"),
    (StorageIdsPart(0, ()), StorageIdsPart.decode, bytes(8)),
    (StorageIdsPart(5, ("a b c",)), StorageIdsPart.decode, i32(5) + i32(1) + b"a b c\n"),
    (StatusReport("group1", BRIEF), StatusReport.decode, text("group1", 16) + BRIEF_BYTES),
    (TrackerStatus(True, 300, 600), TrackerStatus.decode, b"\1" + i64(300) + i64(600)),
    (Joined(ServerStatus.INIT, ""), Joined.decode, bytes(17)),
    (Joined(ServerStatus.ONLINE, "1"), Joined.decode, b"\6" + text("1", 16)),
    (DiskReport(((10, 5), (20, 6))), DiskReport.decode, i64(10) + i64(5) + i64(20) + i64(6)),
    (SyncReport((("10.0.0.1", 7),)), SyncReport.decode, text("10.0.0.1", 16) + i32(7)),
    (Changes(), Changes.decode, b"\0"),
    (Changes(leader=NO_SERVER), Changes.decode, b"\1" + bytes(67)),
    (Changes(trunk_server=BRIEF), Changes.decode, b"\2" + BRIEF_BYTES),
    (Changes(group=(BRIEF, BRIEF)), Changes.decode, b"\4" + BRIEF_BYTES * 2),
    (
        Changes(BRIEF, NO_SERVER, (BRIEF,)),
        Changes.decode,
        b"\7" + BRIEF_BYTES + bytes(67) + BRIEF_BYTES,
    ),
    (
        JOIN,
        Join.decode,
        text("group1", 17)
        + b"".join(i64(n) for n in (23000, 2, 256, 10, 1, 2))
        + text("6.16.1", 8)
        + b"\1\xff"
        + text("100001", 16)
        + text("10.0.0.2", 46)
        + i64(2)
        + b"10.0.0.2:22122\n[2001:db8::1]:22122\n",
    ),
]


@pytest.mark.parametrize(("message", "decode", "data"), TABLE)
def test_both_ways(message: Message, decode: Callable[[bytes], object], data: bytes) -> None:
    assert message.encode() == data
    assert decode(data) == message


@pytest.mark.parametrize(("message", "decode", "data"), [row for row in TABLE if len(row[2]) > 1])
def test_cut_off(message: Message, decode: Callable[[bytes], object], data: bytes) -> None:
    """A shorter body is malformed, or another valid message; never something else."""
    for end in range(len(data)):
        try:
            assert decode(data[:end]) != message
        except ProtocolError:
            pass


REQUESTS: dict[int, Callable[[bytes], Message]] = {
    60: MyIpRequest.decode,
    69: StorageIdsRequest.decode,
    70: ServerQuery.decode,
    71: ServerQuery.decode,
    76: StatusReport.decode,
    84: DiskReport.decode,
    86: ServerKey.decode,
    88: SyncSource.decode,
    89: SyncReport.decode,
}
RESPONSES: dict[int, Callable[[bytes], Message]] = {
    64: TrackerStatus.decode,
    69: StorageIdsPart.decode,
    71: Brief.decode,
    75: Parameters.decode,
    81: Joined.decode,
    83: Changes.decode,
    84: Changes.decode,
    89: Changes.decode,
}
CAPTURED = [v for v in CLIENT + CLUSTER if v.status == 0]


@pytest.mark.parametrize(
    "vector", [v for v in CAPTURED if v.command in REQUESTS], ids=lambda v: v.name
)
def test_captured_requests(vector: Vector) -> None:
    assert REQUESTS[vector.command](vector.request_body).encode() == vector.request_body


@pytest.mark.parametrize(
    "vector",
    [v for v in CAPTURED if v.command in RESPONSES and v.response_body],
    ids=lambda v: v.name,
)
def test_captured_responses(vector: Vector) -> None:
    assert RESPONSES[vector.command](vector.response_body).encode() == vector.response_body


@pytest.mark.parametrize("vector", [v for v in CAPTURED if v.command == 81], ids=lambda v: v.name)
def test_captured_joins(vector: Vector) -> None:
    join = Join.decode(vector.request_body)
    assert join.encode() == vector.request_body
    assert join.version == "6.16.1"


def test_join_with_unknown_own_status() -> None:
    join = Join.decode(named("join_two_trackers", CLUSTER).request_body)
    assert (join.status, join.init_flag, join.storage_id) == (-1, True, "100001")
    assert join.trackers == ("127.0.0.61:42122", "127.0.0.62:42122")
    assert join.tracker_ip == "127.0.0.61"


def test_source_is_optional() -> None:
    assert decode_optional_source(b"") is None
    assert decode_optional_source(bytes(24)) == SyncSource()


@pytest.mark.parametrize("name", ["parameter_req", "parameter_req_storage_id"])
def test_captured_parameters(name: str) -> None:
    parameters = Parameters.decode(named(name, CLUSTER).response_body)
    assert parameters.use_storage_id is (name == "parameter_req_storage_id")
    assert parameters.reserved_storage_space == "1.00%"
    assert len(parameters.encode()) < 1024


def test_absent_parameters_have_the_documented_values() -> None:
    assert Parameters.decode(b"") == Parameters()
    assert Parameters.decode(b"future_key=1\nnot a line\n") == Parameters()
    assert Parameters().slot_max_size == Parameters().trunk_file_size // 4


@pytest.mark.parametrize(
    "body",
    [
        b"response_ip_addr_size=17\n",
        b"id_type_in_filename=mac\n",
        b"store_path=-1\n",
        b"reserved_storage_space=lots\n",
        b"trunk_create_file_time_base=soon\n",
        b"x=1\n" * 256,
    ],
)
def test_malformed_parameters(body: bytes) -> None:
    with pytest.raises(ProtocolError):
        Parameters.decode(body)


@pytest.mark.parametrize(
    ("address", "parsed"),
    [("10.0.0.1:1", ("10.0.0.1", 1)), ("[2001:db8::1]:65535", ("2001:db8::1", 65535))],
)
def test_addresses(address: str, parsed: tuple[str, int]) -> None:
    assert decode_address(address) == parsed
    assert encode_address(*parsed) == address


@pytest.mark.parametrize(
    "address", ["10.0.0.1", ":1", "10.0.0.1:", "a:0", "a:65536", "a:1x", "a:٣"]
)
def test_malformed_addresses(address: str) -> None:
    with pytest.raises(ProtocolError):
        decode_address(address)


def test_port_with_and_without_ip() -> None:
    assert decode_port(i32(23000)) == 23000
    assert decode_port(b"10.0.0.1" + i32(23000)) == 23000
    for body in (b"", i32(0), i32(-1), b"x" * 51):
        with pytest.raises(ProtocolError):
            decode_port(body)


def replaced(**changes: object) -> bytes:
    """The bytes of JOIN with some of its numbers changed, also to what Join would not encode."""
    offsets = {"port": 17, "paths": 25, "subdirs": 33, "count": 137}
    data = bytearray(JOIN.encode())
    for key, value in changes.items():
        assert isinstance(value, int)
        data[offsets[key] : offsets[key] + 8] = i64(value)
    return bytes(data)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        bytes(144),
        replaced(port=0),
        replaced(port=65536),
        replaced(paths=0),
        replaced(paths=257),
        replaced(subdirs=0),
        replaced(subdirs=-1),
        replaced(count=0),
        replaced(count=1),
        replaced(count=3),
        replaced(count=17),
        replaced(count=1 << 62),
        b"gr-p".ljust(17, b"\0") + JOIN.encode()[17:],
        bytes(17) + JOIN.encode()[17:],
        b"x" * 17 + JOIN.encode()[17:],
        b"gr\xc3\xb6up".ljust(17, b"\0") + JOIN.encode()[17:],
        JOIN.encode()[:-1],
        JOIN.encode() + b"x",
        JOIN.encode() + b"\n" * 2000,
    ],
)
def test_malformed_joins(body: bytes) -> None:
    with pytest.raises(ProtocolError):
        Join.decode(body)


def test_a_join_needs_a_tracker() -> None:
    with pytest.raises(UsageError):
        Join(**{**{f: getattr(JOIN, f) for f in JOIN.__slots__}, "trackers": ()}).encode()


@pytest.mark.parametrize(
    "body", [b"\1", b"\0" + bytes(67), b"\x08", b"\3" + bytes(67), b"\4" + bytes(67 * 35), b"\4x"]
)
def test_malformed_changes(body: bytes) -> None:
    with pytest.raises(ProtocolError):
        Changes.decode(body)


@given(st.data(), st.sampled_from(TABLE))
def test_one_wrong_byte(
    data: st.DataObject, row: tuple[Message, Callable[[bytes], object], bytes]
) -> None:
    _, decode, good = row
    body = bytearray(good)
    if body:
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    try:
        decode(bytes(body))
    except ProtocolError:
        pass
