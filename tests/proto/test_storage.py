"""Messages of storage commands: bytes in both directions, cut off, with a tail, and any bytes."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fdfsfuse.errors import ProtocolError
from fdfsfuse.proto.header import HEADER_SIZE
from fdfsfuse.proto.storage import (
    AppendHead,
    Download,
    FileInfo,
    FileRequest,
    ModifyHead,
    SetMetadata,
    SlaveHead,
    StoredFile,
    Truncate,
    UploadHead,
)
from tests.common.vectors import load_client_vectors

NAME = "M00/00/1A/fwAAC2sC71yEb4YYAAAAACWd5eY757.log"
RAW = NAME.encode()
GROUP = b"group1" + bytes(10)

WHOLE: list[tuple[Any, bytes]] = [
    (FileRequest("group1", NAME), GROUP + RAW),
    (FileRequest("a" * 16, "M00/00/00/x"), b"a" * 16 + b"M00/00/00/x"),
    (StoredFile("group1", NAME), GROUP + RAW),
    (
        SetMetadata("group1", NAME, b"a\x021", merge=True),
        struct.pack(">qqc", 44, 3, b"M") + GROUP + RAW + b"a\x021",
    ),
    (SetMetadata("group1", NAME, b""), struct.pack(">qqc", 44, 0, b"O") + GROUP + RAW),
    (Download("group1", NAME, 6, 3), struct.pack(">qq", 6, 3) + GROUP + RAW),
    (Truncate(NAME, 8), struct.pack(">qq", 44, 8) + RAW),
]
"""Messages whose decode takes the whole body."""

HEADS: list[tuple[Any, bytes, int]] = [
    (UploadHead(0, 11, "txt"), b"\0" + struct.pack(">q", 11) + b"txt\0\0\0", 11),
    (UploadHead(255, 0, ""), b"\xff" + bytes(14), 0),
    (UploadHead(1, 2**40, "tar.gz"), b"\1" + struct.pack(">q", 2**40) + b"tar.gz", 2**40),
    (
        SlaveHead(NAME, 10, "_150x150", "jpg"),
        struct.pack(">qq", 44, 10) + b"_150x150" + bytes(8) + b"jpg\0\0\0" + RAW,
        10,
    ),
    (AppendHead(NAME, 4), struct.pack(">qq", 44, 4) + RAW, 4),
    (AppendHead(NAME, 0), struct.pack(">qq", 44, 0) + RAW, 0),
    (ModifyHead(NAME, 5, 4), struct.pack(">qqq", 44, 5, 4) + RAW, 4),
]
"""Messages that *content* bytes follow: decode takes the head and the length of the body."""


def titles(entries: list[Any]) -> list[str]:
    return [f"{type(entry[0]).__name__}-{number}" for number, entry in enumerate(entries)]


@pytest.mark.parametrize(("message", "data"), WHOLE, ids=titles(WHOLE))
def test_whole_bodies(message: Any, data: bytes) -> None:
    assert message.encode() == data
    assert type(message).decode(data) == message


@pytest.mark.parametrize(("message", "data", "content"), HEADS, ids=titles(HEADS))
def test_heads(message: Any, data: bytes, content: int) -> None:
    assert message.encode() == data
    assert type(message).decode(data, len(data) + content) == message
    for wrong in (len(data) + content + 1, len(data) + content - 1):
        with pytest.raises(ProtocolError):
            type(message).decode(data, wrong)
    for end in range(len(data)):
        with pytest.raises(ProtocolError):
            type(message).decode(data[:end], len(data) + content)


@pytest.mark.parametrize("message_type", [SetMetadata, Download, Truncate, FileRequest])
def test_a_body_without_a_name_is_refused(message_type: type[Any]) -> None:
    fixed = {SetMetadata: 33, Download: 32, Truncate: 16, FileRequest: 16}[message_type]
    for length in range(fixed + 1):
        with pytest.raises(ProtocolError):
            message_type.decode(bytes(length))


@pytest.mark.parametrize("ip_size", [16, 46])
def test_file_info(ip_size: int) -> None:
    info = FileInfo(2**33, 1795354463, 0xD6BABD99, "127.0.0.51")
    data = info.encode(ip_size)
    assert data == struct.pack(">qqq", 2**33, 1795354463, 0xD6BABD99 - 2**32) + (
        b"127.0.0.51" + bytes(ip_size - 10)
    )
    assert FileInfo.decode(data) == info
    with pytest.raises(ProtocolError):
        FileInfo.decode(data + b"\0")


def test_sign_extension_is_that_of_the_reference() -> None:
    (vector,) = [v for v in load_client_vectors("storage") if "negative crc" in v.name]
    info = FileInfo.decode(vector.response[HEADER_SIZE:])
    assert info.crc32 == 0xD6BABD99
    assert info.encode(16) == vector.response[HEADER_SIZE:]


def test_truncate_ignores_what_follows_the_name() -> None:
    assert Truncate.decode(struct.pack(">qq", 44, 8) + RAW + b"tail") == Truncate(NAME, 8)


def test_nuls_behind_a_name_are_tolerated_in_download_and_info() -> None:
    assert Download.decode(struct.pack(">qq", 0, 0) + GROUP + RAW + bytes(5)).name == NAME
    assert FileRequest.decode(GROUP + RAW + bytes(5)).name == NAME


@pytest.mark.parametrize("extension", ["a/b", "a b", "ä"])
def test_bad_extensions_are_refused(extension: str) -> None:
    field = extension.encode().ljust(6, b"\0")
    with pytest.raises(ProtocolError):
        UploadHead.decode(bytes(9) + field, 15)


Decoder = Callable[[bytes], object]
DECODERS: list[Decoder] = [
    FileRequest.decode,
    StoredFile.decode,
    SetMetadata.decode,
    Download.decode,
    Truncate.decode,
    FileInfo.decode,
    lambda data: UploadHead.decode(data[:15], len(data)),
    lambda data: SlaveHead.decode(data, len(data)),
    lambda data: AppendHead.decode(data, len(data)),
    lambda data: ModifyHead.decode(data, len(data)),
]


@given(
    st.integers(-(2**63), 2**63 - 1),
    st.integers(-(2**63), 2**63 - 1),
    st.binary(max_size=130),
    st.sampled_from(DECODERS),
)
def test_any_numbers_give_a_message_or_a_protocol_error(
    first: int, second: int, rest: bytes, decode: Decoder
) -> None:
    try:
        decode(struct.pack(">qq", first, second) + rest)
    except ProtocolError:
        pass
