"""Messages of clients and trackers: one table for both directions, and garbage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fdfsfuse.errors import ProtocolError, UsageError
from fdfsfuse.proto.statistics import Statistics
from fdfsfuse.proto.tracker import (
    Endpoint,
    FileRequest,
    FileTargets,
    GroupRequest,
    GroupStat,
    ServerRequest,
    ServerStatus,
    StorageStat,
    StoreTarget,
    StoreTargets,
    decode_group_stats,
    decode_storage_stats,
    expect_empty,
)
from tests.common.vectors import CLIENT, named

FILE = "M00/00/00/fwAAC2sC71qAc1b5AAAACw1KEYU551.txt"
GROUP1 = b"group1" + bytes(10)
PORT = (33000).to_bytes(8, "big")
A = Endpoint("127.0.0.11", 33000)
B = Endpoint("127.0.0.12", 33000)
V6 = Endpoint("2001:db8::1", 23000)


def ip(text: str, size: int) -> bytes:
    return text.encode().ljust(size, b"\0")


REQUESTS: list[tuple[GroupRequest | FileRequest | ServerRequest, bytes]] = [
    (GroupRequest("group1"), GROUP1),
    (GroupRequest("abcdefghijklmnop"), b"abcdefghijklmnop"),
    (FileRequest("group1", FILE), GROUP1 + FILE.encode()),
    (FileRequest("group1", "x" * 22), GROUP1 + b"x" * 22),
    (FileRequest("group1", "x" * 127), GROUP1 + b"x" * 127),
    (ServerRequest("group1"), GROUP1),
    (ServerRequest("group1", "127.0.0.11"), GROUP1 + b"127.0.0.11"),
    (ServerRequest("group1", "1" * 15), GROUP1 + b"1" * 15),
]

RESPONSES: list[tuple[StoreTarget | StoreTargets | FileTargets, int, bytes]] = [
    (StoreTarget("group1", A, 1), 16, GROUP1 + ip("127.0.0.11", 15) + PORT + b"\1"),
    (StoreTarget("group1", A, 255), 46, GROUP1 + ip("127.0.0.11", 45) + PORT + b"\xff"),
    (
        StoreTarget("g", V6, 0),
        46,
        ip("g", 16) + ip("2001:db8::1", 45) + (23000).to_bytes(8, "big") + b"\0",
    ),
    (
        StoreTargets("group1", (A, B), 0),
        16,
        GROUP1 + ip("127.0.0.11", 15) + PORT + ip("127.0.0.12", 15) + PORT + b"\0",
    ),
    (StoreTargets("group1", (A,), 7), 46, GROUP1 + ip("127.0.0.11", 45) + PORT + b"\7"),
    (FileTargets("group1", (B,)), 16, GROUP1 + ip("127.0.0.12", 15) + PORT),
    (
        FileTargets("group1", (A, B)),
        46,
        GROUP1 + ip("127.0.0.11", 45) + PORT + ip("127.0.0.12", 45) + PORT,
    ),
    (FileTargets("group1", (A,) * 23), 46, GROUP1 + (ip("127.0.0.11", 45) + PORT) * 23),
    (FileTargets("group1", (A,) * 53), 16, GROUP1 + (ip("127.0.0.11", 15) + PORT) * 53),
]


@pytest.mark.parametrize(("message", "data"), REQUESTS)
def test_requests_both_ways(
    message: GroupRequest | FileRequest | ServerRequest, data: bytes
) -> None:
    assert message.encode() == data
    assert type(message).decode(data) == message


@pytest.mark.parametrize(("message", "ip_size", "data"), RESPONSES)
def test_responses_both_ways(
    message: StoreTarget | StoreTargets | FileTargets, ip_size: int, data: bytes
) -> None:
    assert message.encode(ip_size) == data
    assert type(message).decode(data) == message


@pytest.mark.parametrize(
    ("message", "ip_size", "data"),
    [row for row in RESPONSES if len(row[2]) in (39, 40, 70)],  # those with one storage
)
def test_a_response_cut_off_or_with_a_tail_is_refused(
    message: StoreTarget | StoreTargets | FileTargets, ip_size: int, data: bytes
) -> None:
    assert ip_size in (16, 46)
    for wrong in [*(data[:end] for end in range(len(data))), data + b"\0"]:
        with pytest.raises(ProtocolError):
            type(message).decode(wrong)


def test_junk_behind_nul_is_ignored() -> None:
    junk = named("query_store with group one, junk after NUL in group field", CLIENT)
    assert GroupRequest.decode(junk.request_body) == GroupRequest("group1")


@pytest.mark.parametrize(
    ("decode", "body"),
    [
        (GroupRequest.decode, b"group1"),
        (GroupRequest.decode, GROUP1 + b"\0"),
        (FileRequest.decode, GROUP1 + b"x" * 21),
        (FileRequest.decode, GROUP1 + b"x" * 128),
        (ServerRequest.decode, GROUP1[:15]),
        (ServerRequest.decode, GROUP1 + b"1" * 16),
        (StoreTarget.decode, GROUP1 + ip("127.0.0.11", 15) + bytes(8) + b"\0"),  # port 0
        (StoreTarget.decode, GROUP1 + ip("127.0.0.11", 15) + (65536).to_bytes(8, "big") + b"\0"),
        (StoreTarget.decode, GROUP1 + ip("localhost", 15) + PORT + b"\0"),
        (FileTargets.decode, GROUP1),
        (StoreTargets.decode, GROUP1 + b"\0"),
        (decode_storage_stats, bytes(486)),
        (decode_storage_stats, bytes([42]) + bytes(486)),  # status 42
        (decode_group_stats, bytes(112)),
        (Statistics.decode, bytes(347)),
        (expect_empty, b"x"),
    ],
)
def test_malformed_bodies(decode: Callable[[bytes], object], body: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode(body)


def test_what_cannot_be_sent_is_refused() -> None:
    with pytest.raises(UsageError):
        FileRequest("group1", "short").encode()
    with pytest.raises(UsageError):
        ServerRequest("group1", "1" * 16).encode()
    with pytest.raises(UsageError):
        StoreTarget("group1", V6, 0).encode(11)
    with pytest.raises(UsageError):
        GroupRequest("seventeen-letters").encode()


@pytest.mark.parametrize(
    "vector",
    [v for v in CLIENT if v.command in (90, 91) and v.response_body],
    ids=lambda vector: vector.name,
)
def test_captured_group_lists(vector: object) -> None:
    body = vector.response_body  # type: ignore[attr-defined]
    groups = decode_group_stats(body)
    assert b"".join(group.encode() for group in groups) == body
    assert groups[0] == GroupStat(
        "group1", 516038, groups[0].free_mb, 5160, 0, 2, 33000, 2, 2, 0, 2, 4, -1
    )


def test_captured_storage_list() -> None:
    body = named("list_storage", CLIENT).response_body
    storages = decode_storage_stats(body)
    assert b"".join(storage.encode(16) for storage in storages) == body
    first = storages[0]
    assert [storage.storage_id for storage in storages] == ["127.0.0.11", "127.0.0.12"]
    assert first.status is ServerStatus.ACTIVE
    assert (first.rw_mode, first.version, first.storage_port) == (6, "6.16.1", 33000)
    assert (first.store_path_count, first.subdir_count_per_path) == (2, 4)
    assert first.statistics.total_upload_count == 67
    assert first.statistics.last_heart_beat_time == 1795354634
    assert not first.is_trunk_server


def test_captured_storage_list_with_wide_addresses() -> None:
    body = named("list_storage IPv6-size", CLIENT).response_body
    (storage,) = decode_storage_stats(body)
    assert storage.encode(46) == body
    assert (storage.storage_id, storage.ip, storage.rw_mode) == ("100002", "127.0.0.32", 4)
    assert storage.source_id == "100001"


def test_statistics_have_their_documented_offsets() -> None:
    data = Statistics(
        connections_max=7, total_upload_count=1, total_upload_bytes=2, last_source_update=3
    ).encode()
    assert len(data) == 348
    assert data[8:12] == (7).to_bytes(4, "big")
    assert data[12:20] == (1).to_bytes(8, "big")
    assert data[172:180] == (2).to_bytes(8, "big")
    assert data[316:324] == (3).to_bytes(8, "big")
    assert len(astuple(Statistics.decode(data))) == 45


DECODERS: list[Callable[[bytes], object]] = [
    GroupRequest.decode,
    FileRequest.decode,
    ServerRequest.decode,
    StoreTarget.decode,
    StoreTargets.decode,
    FileTargets.decode,
    GroupStat.decode,
    StorageStat.decode,
    decode_group_stats,
    decode_storage_stats,
    Statistics.decode,
]


@given(st.sampled_from(DECODERS), st.binary(max_size=200) | st.binary(min_size=487, max_size=517))
def test_any_bytes_are_a_message_or_a_protocol_error(
    decode: Callable[[bytes], object], data: bytes
) -> None:
    try:
        decode(data)
    except ProtocolError:
        pass
