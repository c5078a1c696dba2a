"""Any bytes to any decoder give a message or a protocol error, never another exception.

The decoders are found by looking at the modules, so a new one is tested without being listed.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fdfsfuse.proto
from fdfsfuse.errors import ProtocolError
from fdfsfuse.proto.header import HEADER_SIZE
from tests.common.vectors import CLIENT, CLUSTER

Decoder = Callable[..., object]
ARGUMENTS: dict[str, st.SearchStrategy[Any]] = {
    "bytes": st.binary(max_size=300),
    "bytes | memoryview": st.binary(max_size=300),
    "bytes | bytearray | memoryview": st.binary(max_size=300),
    "str": st.text(max_size=130),
}
"""What is drawn for a parameter of each annotation; ``body_length`` is any number."""

BODIES = sorted({body for v in CLIENT + CLUSTER for body in (v.request_body, v.response_body)})
"""Captured bodies of all commands, requests and responses."""


def parameters_of(decoder: Decoder) -> list[st.SearchStrategy[Any]] | None:
    """What to draw for a decoder; None when it takes more than untrusted data."""
    drawn = []
    for parameter in inspect.signature(decoder).parameters.values():
        if parameter.name == "body_length":
            drawn.append(st.integers(0, (1 << 63) - 1))
        elif str(parameter.annotation) in ARGUMENTS:
            drawn.append(ARGUMENTS[str(parameter.annotation)])
        else:
            return None
    return drawn


def find_decoders() -> dict[str, Decoder]:
    """Functions and class methods of the codec whose names say that they decode."""
    found: dict[str, Decoder] = {}
    for module_info in pkgutil.iter_modules(fdfsfuse.proto.__path__, "fdfsfuse.proto."):
        module = importlib.import_module(module_info.name)
        for name, value in vars(module).items():
            if getattr(value, "__module__", "") != module_info.name or name.startswith("_"):
                continue
            short = f"{module_info.name.rpartition('.')[2]}.{name}"
            method = getattr(value, "decode", None)
            if inspect.isfunction(value) and name.startswith(("decode", "unpack", "parse")):
                found[short] = value
            elif inspect.isclass(value) and inspect.ismethod(method):
                found[f"{short}.decode"] = method
    return {name: decoder for name, decoder in found.items() if parameters_of(decoder)}


DECODERS = find_decoders()
OF_BYTES = {
    name: decoder
    for name, decoder in DECODERS.items()
    if [str(p.annotation) for p in inspect.signature(decoder).parameters.values()] == ["bytes"]
}


def test_decoders_are_found() -> None:
    assert len(DECODERS) > 50
    assert {"tracker.StoreTarget.decode", "header.unpack_header", "fileid.decode_name"} <= set(
        DECODERS
    )


def check(decoder: Decoder, *arguments: object) -> None:
    try:
        decoder(*arguments)
    except ProtocolError:
        pass


@pytest.mark.parametrize("name", DECODERS)
@settings(max_examples=60)
@given(data=st.data())
def test_random_arguments(name: str, data: st.DataObject) -> None:
    check(DECODERS[name], *map(data.draw, parameters_of(DECODERS[name]) or ()))


@settings(max_examples=200)
@given(st.sampled_from(sorted(OF_BYTES)), st.sampled_from(BODIES), st.data())
def test_captured_bodies_with_damage(name: str, body: bytes, data: st.DataObject) -> None:
    damaged = bytearray(body[: data.draw(st.integers(0, len(body)))])
    for _ in range(data.draw(st.integers(0, 3)) if damaged else 0):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    damaged += data.draw(st.binary(max_size=8))
    check(OF_BYTES[name], bytes(damaged))


@pytest.mark.parametrize("name", ["storage.UploadHead.decode", "storage.SlaveHead.decode"])
@pytest.mark.parametrize("vector", [v for v in CLIENT if v.command in (11, 21, 23, 24, 34)])
def test_heads_that_announce_anything(name: str, vector: Any) -> None:
    for length in (0, len(vector.request_body), 1 << 40):
        for end in range(HEADER_SIZE, min(len(vector.request), 120)):
            check(DECODERS[name], vector.request[HEADER_SIZE:end], length)
