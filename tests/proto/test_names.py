"""Names messages there and back; any other bytes are a ProtocolError, and cost little memory."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fdfsfuse.errors import ProtocolError
from fdfsfuse.proto import names, structs

DECODERS: list[Callable[[bytes], object]] = [
    names.decode_request,
    names.decode_push,
    *(
        lambda data, kind=kind: structs.decode(kind, data)
        for kind in (names.View, names.OpenSession, names.WriteObject, names.TruncateObject)
    ),
    *(lambda data, kind=kind: names.decode_answer(kind, data) for kind in names.ANSWERS),
]

REQUESTS: list[names.Request] = [
    names.Lookup(1, b"name"),
    names.ReadDir(1, 0, 100),
    names.ListXattrs(0, "M00/00/00/x"),
    names.Holds([1, 2, 3], [4]),
    names.Create(1, b"name", 0o100644, 0, 0, 1, 0, b""),
    names.Rename(1, b"a", 2, b"b", 0, 1),
    names.SetAttr(5, 1, mode=0o600),
    names.SetXattr(5, b"user.a", b"value", 0, 1),
    names.StoreContent(5, b"data" * 100, -1),
    names.NameObject(5, "M00/00/00/x", 1 << 40, 1),
    names.CreateFile(1, b"name", 9, 0o644, 0, 0, 1, 2, 3, 4, b"data"),
    names.CloseSession(),
]

ABSURD = [
    b"\xdd\xff\xff\xff\xff\x0b",  # an array of 2^32 - 1 elements
    b"\x93\x0b\xdd\xff\xff\xff\xff",  # in Holds
    b"\x93\x01\x01\xc6\xff\xff\xff\xff",  # a name of 2^32 - 1 bytes
    b"\x94\x03\xdf\xff\xff\xff\xff",  # a map as inode number
    b"\xc1",
    b"",
]


@pytest.mark.parametrize("decode", DECODERS)
@given(data=st.binary(max_size=200))
def test_random_bytes(decode: Callable[[bytes], object], data: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        decode(data)


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda r: type(r).__name__)
def test_cut_off_anywhere(request_: names.Request) -> None:
    data = names.encode(request_)
    assert names.decode_request(data) == request_
    for end in range(len(data)):
        with pytest.raises(ProtocolError):
            names.decode_request(data[:end])
    with pytest.raises(ProtocolError):
        names.decode_request(data + b"\0")


@pytest.mark.parametrize("decode", DECODERS)
@pytest.mark.parametrize("data", ABSURD)
def test_absurd_lengths_cost_no_memory(decode: Callable[[bytes], object], data: bytes) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ProtocolError):
        decode(data)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 << 10


@pytest.mark.parametrize("open_", [b"\x91", b"\x81\x01"])
def test_deep_nesting_in_an_unknown_field(open_: bytes) -> None:
    """A reader ignores fields that it does not know, however deep they are."""
    lookup = b"\x94\x01\x01\xc4\x01x"
    assert names.decode_request(lookup + open_ * 3 + b"\x01") == names.Lookup(1, b"x")
    with pytest.raises(ProtocolError):
        names.decode_request(lookup + open_ * 200_000 + b"\x01")


def test_every_request_has_an_answer_and_changes_have_their_own_tags() -> None:
    tags = {kind: kind.__struct_config__.tag for kind in names.ANSWERS}  # type: ignore[attr-defined]
    assert len(set(tags.values())) == len(tags)
    assert {kind for kind, tag in tags.items() if tag >= 32} == set(names.CHANGES)
