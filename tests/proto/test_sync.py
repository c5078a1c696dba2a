"""Messages between storages, against what the reference servers sent."""

from __future__ import annotations

import pytest

from fdfsfuse.errors import ProtocolError
from fdfsfuse.proto import structs, sync
from fdfsfuse.proto.header import HEADER_SIZE, pack_text
from fdfsfuse.proto.sync import DeleteFile, FileHead, RangeHead, TwoNames
from tests.common.vectors import CLUSTER, Vector, named

SYNC = [v for v in CLUSTER if v.server == "storage" and v.command in set(sync.SyncCommand)]


def head_of(vector: Vector) -> FileHead | RangeHead | DeleteFile | TwoNames | str:
    """Decode the part of a request that is no content."""
    body = vector.request_body
    if vector.command in (16, 18):
        end = 36 + sync.name_length(body[:36], 36)
        return FileHead.decode(body[:end], len(body) - end)
    if vector.command in (25, 35, 37):
        return RangeHead.decode(body[: 44 + sync.name_length(body[:44], 44)])
    if vector.command == 17:
        return DeleteFile.decode(body)
    if vector.command in (19, 40):
        return TwoNames.decode(body)
    return sync.decode_server_id(body)


@pytest.mark.parametrize("vector", SYNC, ids=lambda vector: vector.name)
def test_vectors(vector: Vector) -> None:
    head = head_of(vector)
    encoded = sync.encode_server_id(head) if isinstance(head, str) else head.encode()
    original = vector.request[HEADER_SIZE : HEADER_SIZE + len(encoded)]
    group = original.find(b"group1\0")
    if group >= 0:  # behind the NUL the reference leaves what was there before
        original = original[: group + 6] + bytes(10) + original[group + 16 :]
    assert encoded == original


def test_fields() -> None:
    name = "M00/00/00/fwAAFWsC6S-AGBPPAAAAFLuzHAg180.bin"
    assert head_of(named("sync_create", CLUSTER)) == FileHead(name, 20, 0x6B02E92F, "group1")
    append = head_of(named("sync_append", CLUSTER))
    assert isinstance(append, RangeHead)
    assert (append.first, append.second) == (12, 12)
    link = head_of(named("sync_link", CLUSTER))
    assert isinstance(link, TwoNames)
    assert link.name.endswith("_x.jpg") or "-x" in link.name
    assert link.other.endswith(".jpg")


@pytest.mark.parametrize("vector", SYNC, ids=lambda vector: vector.name)
def test_cut_off_requests_are_refused(vector: Vector) -> None:
    body = vector.request_body
    head = head_of(vector)
    size = 16 if isinstance(head, str) else len(head.encode())
    for cut in range(size):
        shorter = Vector(
            vector.name, "storage", vector.command, bytes(10) + body[:cut], b"", 0, False, ""
        )
        if vector.command == 17 and cut > 20:
            continue  # a shorter name is a name too
        with pytest.raises(ProtocolError):
            head_of(shorter)


@pytest.mark.parametrize(
    "head",
    [
        FileHead("n" * 11, -1, 0, "group1"),
        FileHead("n" * 11, 5, 0, "group1"),
        RangeHead("n" * 11, -1, 1, 0, "group1"),
        RangeHead("n" * 11, 1, -1, 0, "group1"),
        FileHead("n" * 128, 0, 0, "group1"),
    ],
)
def test_impossible_numbers(head: FileHead | RangeHead) -> None:
    body = head.encode()
    with pytest.raises(ProtocolError):
        _ = FileHead.decode(body, 3) if isinstance(head, FileHead) else RangeHead.decode(body)


def test_a_whole_request_in_one_go() -> None:
    vector = named("sync_create", CLUSTER)
    head = FileHead.decode(vector.request_body[:80], 20)
    request = sync.pack_file_request(
        sync.SyncCommand.CREATE, head.name, head.size, head.timestamp, pack_text(head.group, 16)
    )
    assert request == vector.request[:-20]


def test_hello() -> None:
    hello = sync.Hello(1, "group1", "100001")
    assert structs.decode(sync.Hello, structs.encode(hello)) == hello
    answer = sync.HelloAnswer(1, "boot")
    assert structs.decode(sync.HelloAnswer, structs.encode(answer)) == answer
    for body in (b"", b"\x90", b"\xff", b"\x93\x01\xa1\xff\xa0"):
        with pytest.raises(ProtocolError):
            structs.decode(sync.Hello, body)
