"""Exchanges captured from reference servers (version 6.16.1), as data files.

``tests/vectors/client.json``: client commands; ``cluster.json``: commands between servers. Their
keys are described in protocol/wire.md section 6; times, counters and file names in them are those
of the moment they were captured.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_DIRECTORY = Path(__file__).parent.parent / "vectors"
HEADER_SIZE = 10


@dataclass(frozen=True, slots=True)
class Vector:
    """One exchange. ``response`` is b'' when the server closed without an answer.

    ``server`` is ``tracker`` or ``storage`` (who answered); ``status`` None when nobody did;
    ``closed`` tells whether the server closed the connection afterwards.
    """

    name: str
    server: str
    command: int
    request: bytes
    response: bytes
    status: int | None
    closed: bool
    note: str

    @property
    def request_body(self) -> bytes:
        return self.request[HEADER_SIZE:]

    @property
    def response_body(self) -> bytes:
        return self.response[HEADER_SIZE:]


def _vector(entry: dict[str, Any]) -> Vector:
    request = bytes.fromhex(entry["request_hex"])
    fill = entry.get("request_fill")
    if fill:
        request += bytes.fromhex(fill["byte_hex"]) * fill["count"]
    return Vector(
        entry["name"],
        entry.get("server") or entry["to"],
        entry["command"],
        request,
        bytes.fromhex(entry["response_hex"]),
        entry["status"],
        entry.get("connection_after") == "closed",
        entry.get("note") or "",
    )


def load(file_name: str) -> list[Vector]:
    """All exchanges of ``client.json`` or ``cluster.json``, in the order of their capture."""
    return [_vector(entry) for entry in json.loads((_DIRECTORY / file_name).read_text())]


def load_client_vectors(server: str) -> list[Vector]:
    """The client exchanges of ``tracker`` or ``storage``, in the order of their capture."""
    return [vector for vector in load("client.json") if vector.server == server]


CLIENT = load("client.json")
CLUSTER = load("cluster.json")


def named(name: str, vectors: list[Vector]) -> Vector:
    """The one exchange of that name."""
    (found,) = (vector for vector in vectors if vector.name == name)
    return found
