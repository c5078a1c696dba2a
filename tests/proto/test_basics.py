"""Header, text fields, metadata text and names frames."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fdfsfuse.errors import ProtocolError, UsageError
from fdfsfuse.proto import metadata
from fdfsfuse.proto.header import (
    HEADER_SIZE,
    Header,
    pack_header,
    pack_response,
    pack_text,
    unpack_header,
    unpack_text,
)


def test_header_layout() -> None:
    assert pack_header(0x1A, 11) == bytes.fromhex("000000000000001a0b00")
    assert unpack_header(bytes.fromhex("00000000000000006416")) == Header(0, 100, 22)
    assert pack_response(b"ab") == bytes.fromhex("000000000000000264006162")


@given(st.binary(max_size=12))
def test_any_bytes_are_a_header_or_a_protocol_error(data: bytes) -> None:
    try:
        header = unpack_header(data)
    except ProtocolError:
        assert len(data) != HEADER_SIZE or data[0] & 0x80
    else:
        assert pack_header(*header) == data


def test_text_fields() -> None:
    assert pack_text("group1", 16) == b"group1" + bytes(10)
    assert unpack_text(b"group1\0junkjunk") == "group1"
    assert unpack_text(b"0123456789abcdef") == "0123456789abcdef"
    for bad in ("x" * 17, "a\0b", "\u00e4"):
        with pytest.raises(UsageError):
            pack_text(bad, 16)


PAIRS = st.lists(
    st.tuples(
        st.binary(min_size=1, max_size=64).filter(lambda b: not set(b) & {0, 1, 2}),
        st.binary(max_size=256).filter(lambda b: not set(b) & {0, 1, 2}),
    )
)


@given(PAIRS)
def test_metadata_round_trips_sorted(pairs: metadata.Pairs) -> None:
    assert all(metadata.fits(*pair) for pair in pairs)
    decoded = metadata.decode(metadata.encode(pairs))
    assert decoded == sorted(pairs, key=lambda pair: pair[0])


@given(PAIRS, PAIRS)
def test_metadata_merge_replaces_and_keeps(old: metadata.Pairs, new: metadata.Pairs) -> None:
    merged = metadata.merge(old, new)
    assert dict(merged) == {**dict(old), **dict(new)}
    assert merged == sorted(merged)


def test_metadata_of_the_documents() -> None:
    text = b"width\x021024\x01height\x02768\x01bgcolor\x02#FFF"
    assert metadata.encode(metadata.decode(text)) == (
        b"bgcolor\x02#FFF\x01height\x02768\x01width\x021024"
    )
    assert metadata.decode(b"a\x021\x01b\x022\0") == [(b"a", b"1"), (b"b", b"2")]
    assert metadata.decode(b"no separator\x01a\x021") == [(b"a", b"1")]
    assert metadata.decode(b"n" * 70 + b"\x02" + b"v" * 300) == [(b"n" * 64, b"v" * 256)]
    for name, value in ((b"", b"v"), (b"n" * 65, b""), (b"n", b"v" * 257), (b"n\x01", b"")):
        assert not metadata.fits(name, value)
