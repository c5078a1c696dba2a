"""MessagePack bodies: any bytes are the struct or a ProtocolError."""

from __future__ import annotations

import inspect

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fdfsfuse.errors import ProtocolError
from fdfsfuse.proto import cluster_status, copies, names, structs, sync

KINDS: list[type[msgspec.Struct]] = [
    *(
        kind
        for module in (cluster_status, copies, sync)
        for _, kind in inspect.getmembers(module, inspect.isclass)
        if issubclass(kind, msgspec.Struct) and kind.__module__ == module.__name__
    ),
    names.View,
    names.OpenSession,
    names.SessionOpened,
    names.WriteObject,
    names.TruncateObject,
]


@given(st.sampled_from(KINDS), st.binary(max_size=60))
def test_any_bytes(kind: type[msgspec.Struct], data: bytes) -> None:
    try:
        decoded = structs.decode(kind, data)
    except ProtocolError:
        return
    assert isinstance(decoded, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_nested_too_deeply(kind: type[msgspec.Struct]) -> None:
    """Also where a field is expected that we do not know, which is skipped."""
    fields = len(msgspec.structs.fields(kind))
    for known in range(fields + 2):
        with pytest.raises(ProtocolError):
            structs.decode(kind, b"\xdc\x00\x40" + b"\x00" * known + b"\x91" * 5000 + b"\x00")


def test_a_field_that_a_later_version_has_added_is_skipped() -> None:
    data = b"\x94\x01\xa6group1\xa6100001\x91\x05"
    assert structs.decode(sync.Hello, data) == sync.Hello(1, "group1", "100001")
