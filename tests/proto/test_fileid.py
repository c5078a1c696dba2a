"""File ids against the worked examples of protocol/file-id.md section 8, and as properties."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fdfsfuse.errors import ProtocolError, UsageError
from fdfsfuse.proto.fileid import (
    EXTENSION,
    FileKind,
    UsualFields,
    decode_name,
    decode_source,
    encode_base,
    encode_source,
    is_object_base,
    make_suffix,
    origin_of,
    parse_location,
    slave_name,
    split_file_id,
    time_of_name,
)
from fdfsfuse.proto.header import FILE_NAME_MAX, GROUP_NAME_SIZE, pack_text
from fdfsfuse.proto.storage import FileRequest

N = FileKind.NORMAL
A = FileKind.APPENDER
S = FileKind.SLAVE

# (name, source, is id, timestamp, size, crc32, kind, in trunk)
EXAMPLES = [
    (
        "M00/00/00/fwAAC2sC71qAc1b5AAAACw1KEYU551.txt",
        "127.0.0.11",
        False,
        1795354458,
        11,
        0x0D4A1185,
        N,
        False,
    ),
    (
        "M01/00/00/fwAADGsC71uAEKgjAAAAAAAAAAA9294680",
        "127.0.0.12",
        False,
        1795354459,
        0,
        0,
        N,
        False,
    ),
    (
        "M01/00/00/fwAAC2sC71uABYuZAAAADC_9g3U.tar.gz",
        "127.0.0.11",
        False,
        1795354459,
        12,
        0x2FFD8375,
        N,
        False,
    ),
    (
        "M00/00/00/fwAAC2sC71yEb4YYAAAAACWd5eY757.log",
        "127.0.0.11",
        False,
        1795354460,
        0,
        0x259DE5E6,
        A,
        False,
    ),
    (
        "M00/00/00/fwAAC2sC71qAc1b5AAAACw1KEYU551_150x150.jpg",
        "127.0.0.11",
        False,
        1795354458,
        11,
        0x0D4A1185,
        S,
        False,
    ),
    (
        "M00/01/09/oYYBAGsC712AbEjgAAAACDm-hlI874.txt",
        "100001",
        True,
        1795354461,
        8,
        0x39BE8652,
        N,
        False,
    ),
    (
        "M00/00/00/fwAAM2sC712IPPAcAAAAC9a6vZkAAAAAQAAAgAAAAEA400.txt",
        "127.0.0.51",
        False,
        1795354461,
        11,
        0xD6BABD99,
        N,
        True,
    ),
    (
        "M00/00/00/fwAAM2sC712IPPAcAAAAC9a6vZkAAAAAQAAAgAAAAEA400_150x150.jpg",
        "127.0.0.51",
        False,
        1795354461,
        11,
        0xD6BABD99,
        S,
        True,
    ),
    (
        "M00/0D/07/oYYBAGsC716EJ-2gAAAAACYqDkA038.dat",
        "100001",
        True,
        1795354462,
        0,
        0x262A0E40,
        A,
        False,
    ),
    (
        "M00/00/00/fwAAC2sC7FIAAAABAAAABbHCoaM785.bin",
        "127.0.0.11",
        False,
        1795353682,
        4294967301,
        0xB1C2A1A3,
        N,
        False,
    ),
]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda e: str(e[0])[-12:])
def test_worked_examples_decode(
    example: tuple[str, str, bool, int, int, int, FileKind, bool],
) -> None:
    name, source, is_id, timestamp, size, crc, kind, in_trunk = example
    info = decode_name(name)
    assert (info.source, info.source_is_id, info.timestamp) == (source, is_id, timestamp)
    assert (info.size, info.crc32, info.kind, info.in_trunk) == (size, crc, kind, in_trunk)
    raw, known_crc = origin_of(parse_location(name, 2))
    assert decode_source(raw) == (source, is_id)
    assert known_crc == (crc if kind is N else None)


@pytest.mark.parametrize(
    ("index", "random_bits", "appender"), [(0, 0x7356F9, False), (3, 0x6F8618, True), (9, 0, False)]
)
def test_worked_examples_encode(index: int, random_bits: int, appender: bool) -> None:
    name, source, _, timestamp, size, crc, _, _ = EXAMPLES[index]
    base = encode_base(
        encode_source(source), timestamp, size, crc, name[-7:], random_bits, appender=appender
    )
    assert name.endswith("/" + base)


@given(
    st.ip_addresses(v=4).map(str).filter(lambda ip: not ip.endswith(".0"))
    | st.integers(1, 0xFFFFFF).map(str),
    st.integers(-(2**31), 2**31 - 1),
    st.integers(0, 2**40),
    st.integers(0, 2**32 - 1),
    st.from_regex(EXTENSION, fullmatch=True),
    st.integers(0, 2**30),
    st.booleans(),
)
def test_any_name_round_trips(
    source: str, timestamp: int, size: int, crc: int, extension: str, chance: int, appender: bool
) -> None:
    suffix = make_suffix(extension, chance)
    assert len(suffix) == 7
    base = encode_base(
        encode_source(source), timestamp, size, crc, suffix, chance, appender=appender
    )
    name = f"M0A/1F/00/{base}"
    assert len(name) == 44
    info = decode_name(name)
    assert (info.source, info.timestamp, info.crc32) == (source, timestamp, crc)
    assert info.size == (0 if appender else size)
    assert info.kind is (A if appender else N)
    location = parse_location(name, 256)
    assert origin_of(location) == (encode_source(source), None if appender else crc)
    assert (location.path_index, location.high, location.low) == (10, 0x1F, 0)
    assert location.name == name


@given(st.text() | st.text("M0/AF.-m", max_size=40))
def test_any_text_is_a_location_or_a_protocol_error(text: str) -> None:
    try:
        location = parse_location(text, 2)
    except ProtocolError:
        return
    assert "/" not in location.base
    assert location.base not in (".", "..")
    assert location.path_index in (0, 1)


@given(
    st.binary(max_size=20),
    st.from_regex(rb"M0[01]/0[0-9A-F]/[0-9A-F]{2}/[!-~]{0,130}\x00?", fullmatch=True) | st.binary(),
)
def test_usual_names_in_requests_are_those_of_all_names(front: bytes, field: bytes) -> None:
    body = front + pack_text("group1", GROUP_NAME_SIZE) + field
    location = UsualFields("group1", 1).locate(body, len(front))
    if location is not None:
        assert location == parse_location(field.decode("ascii"), 1)
        assert len(field) <= FILE_NAME_MAX


def test_usual_names_in_requests() -> None:
    usual = UsualFields("group1", 2)
    name = "M01/0A/1B/" + "x" * (FILE_NAME_MAX - 10)
    body = FileRequest("group1", name).encode()
    assert usual.locate(body, 0) == parse_location(name, 2)
    assert usual.locate(b"front" + body, 5) == parse_location(name, 2)
    front = name[:10]
    for unusual in (
        f"{name}x",
        f"{name[:50]}\0",
        name.lower(),
        front,
        front + ".",
        front + "..",
        "",
    ):
        assert usual.locate(FileRequest("group1", unusual).encode(), 0) is None
    assert UsualFields("group1", 1).locate(body, 0) is None
    for group in ("group2", "group", "group12"):
        assert usual.locate(FileRequest(group, name).encode(), 0) is None


def test_characters_of_usual_names() -> None:
    usual = UsualFields("group1", 1)
    start = FileRequest("group1", "M00/0A/1B/").encode()
    found = {byte for byte in range(256) if usual.locate(start + bytes([byte]) * 3, 0)}
    assert found == set((string.ascii_letters + string.digits + "._-").encode())
    for position in range(len("M00/0A/1B/")):
        changed = bytearray(start + b"name")
        changed[16 + position] = ord("/" if changed[16 + position] != ord("/") else "0")
        assert usual.locate(bytes(changed), 0) is None


@pytest.mark.parametrize(
    "bad",
    [
        "M00/00/../fwAAC2sC71qAc1b5AAAACw1KEYU551.txt",
        "M00/00/00/..",
        "M00/00/00/a/b",
        "M00/0a/00/fwAAC2sC71qAc1b5AAAACw1KEYU551.txt",
        "M02/00/00/fwAAC2sC71qAc1b5AAAACw1KEYU551.txt",
        "MXX/00/00/fwAAC2sC71qAc1b5AAAACw1KEYU551.txt",
        "N00/00/00/fwAAC2sC71qAc1b5AAAACw1KEYU551.txt",
        "M00/00/00/a\0b",
        "M00/00/00/",
        "M00/00/00",
    ],
)
def test_bad_names_are_refused(bad: str) -> None:
    with pytest.raises(ProtocolError):
        parse_location(bad, 2)


def test_legacy_name_is_on_path_zero() -> None:
    assert parse_location("00/1A/fwAAC2sC71qAc1b5", 1).name == "M00/00/1A/fwAAC2sC71qAc1b5"


@pytest.mark.parametrize(
    ("master", "prefix", "extension", "slave"),
    [
        (EXAMPLES[0][0], "_150x150", "jpg", "M00/00/00/fwAAC2sC71qAc1b5AAAACw1KEYU551_150x150.jpg"),
        (EXAMPLES[0][0], "-small", "", "M00/00/00/fwAAC2sC71qAc1b5AAAACw1KEYU551-small"),
        (EXAMPLES[2][0], "_ab", "jpg", "M01/00/00/fwAAC2sC71uABYuZAAAADC_9g3U_ab.jpg"),
        (EXAMPLES[1][0], "_s", ".jpg", "M01/00/00/fwAADGsC71uAEKgjAAAAAAAAAAA9294680_s.jpg"),
    ],
)
def test_slave_names(master: str, prefix: str, extension: str, slave: str) -> None:
    assert slave_name(master, prefix, extension) == slave


def test_split_file_id() -> None:
    assert split_file_id("group1/M00/00/00/x.jpg") == ("group1", "M00/00/00/x.jpg")
    for bad in ("group1", "/M00/00/00/x", "gr_up/M00/00/00/x", "g/", "g/" + "x" * 128, "g/\u00e4"):
        with pytest.raises(UsageError):
            split_file_id(bad)


def test_object_bases() -> None:
    base = EXAMPLES[0][0][10:]
    assert is_object_base(base)
    for other in (base + "-m", "000001", ".fastdfs_vars", base[:20], base.replace("f", "!")):
        assert not is_object_base(other)


@pytest.mark.parametrize("timestamp", [0, 1, 1_795_353_706, 0x7FFFFFFF])
def test_the_time_alone(timestamp: int) -> None:
    base = encode_base(encode_source("192.168.1.2"), timestamp, 5, 7, "_______", 3)
    name = f"M00/00/0C/{base}"
    assert time_of_name(name) == decode_name(name).timestamp == timestamp
