"""What a cluster has acknowledged, and whether every server of a group really has it.

A `Ledger` is told each operation before it is asked for and what became of it. What was
acknowledged must be there in the end; what was asked for and never answered (the server was killed,
the network was cut) may be there or not, and nothing else may have happened to that file.

`compare` looks at the disks of the servers themselves, not through them. It is for a group that has
come to rest.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from tests.common.plain import Address, PlainError

Metadata = dict[str, str]
_IS_HEX = re.compile("[0-9A-F]{2}").fullmatch


class Server(Protocol):
    """What `compare` wants of a storage; `tests.common.cluster.Storage` has it."""

    name: str
    store_paths: list[Path]

    def path_of(self, file_name: str) -> Path:
        """Where ``M00/HH/HH/...`` is on the disk."""


@dataclass(frozen=True)
class Version:
    """A file as it may be: ``data`` is None when it does not exist."""

    data: bytes | None
    metadata: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, data: bytes | None, metadata: Metadata) -> Version:
        return cls(data, tuple(sorted(metadata.items())) if data is not None else ())


@dataclass
class File:
    """One file id. ``data`` is None once it is deleted; ``unsure`` lists what else it may be.

    ``source`` is the address of the storage that took the upload.
    """

    file_id: str
    data: bytes | None
    source: Address
    metadata: Metadata = field(default_factory=dict)
    appender: bool = False
    history: list[str] = field(default_factory=list)
    unsure: list[Version] = field(default_factory=list)

    @property
    def group(self) -> str:
        return self.file_id.split("/", 1)[0]

    @property
    def name(self) -> str:
        return self.file_id.split("/", 1)[1]

    def versions(self) -> list[Version]:
        """What it may be in the end."""
        return [Version.of(self.data, self.metadata), *self.unsure]


class Ledger:
    """Every operation that was acknowledged. Several threads may use it, one per file at a time."""

    def __init__(self) -> None:
        self.files: dict[str, File] = {}
        self.acknowledged = 0
        self.unanswered = 0
        self.unanswered_contents: set[bytes] = set()
        """Hashes of contents whose upload was not answered: their ids are not known."""
        self._lock = threading.Lock()

    def uploaded(
        self, file_id: str, data: bytes, source: Address, *, appender: bool = False, what: str
    ) -> File:
        """Note an acknowledged upload."""
        with self._lock:
            assert file_id not in self.files, f"{file_id} was given out twice"
            file = self.files[file_id] = File(
                file_id, data, source, appender=appender, history=[what]
            )
            self.acknowledged += 1
        return file

    @contextmanager
    def uploading(self, data: bytes) -> Iterator[None]:
        """Around an upload: notes one that was not answered. The exception goes on."""
        try:
            yield
        except (PlainError, ConnectionRefusedError):
            raise
        except (OSError, EOFError):
            with self._lock:
                self.unanswered_contents.add(digest(data))
                self.unanswered += 1
            raise

    @contextmanager
    def changing(self, file: File, what: str, *outcomes: Version) -> Iterator[None]:
        """Around a change: the first of *outcomes* is the file when it was acknowledged.

        When it was not answered the file may be as before, or be any of *outcomes*. When it was
        refused nothing happened. Exceptions go on.
        """
        assert not file.unsure, f"{file.file_id} was left in doubt and is changed again"
        try:
            yield
        except PlainError as exc:
            file.history.append(f"{what}: refused with {exc.status}")
            raise
        except ConnectionRefusedError:
            raise  # it was not even sent
        except (OSError, EOFError) as exc:
            file.history.append(f"{what}: no answer ({exc})")
            file.unsure = list(outcomes)
            with self._lock:
                self.unanswered += 1
            raise
        file.history.append(what)
        file.data, file.metadata = outcomes[0].data, dict(outcomes[0].metadata)
        with self._lock:
            self.acknowledged += 1

    def in_group(self, group: str) -> list[File]:
        """The files of a group, in the order of their ids."""
        return sorted((f for f in self.files.values() if f.group == group), key=lambda f: f.file_id)


def digest(data: bytes) -> bytes:
    """Tells contents apart."""
    return hashlib.sha256(data).digest()


def read_metadata(path: str) -> Metadata:
    """The metadata file beside *path* (protocol/disk.md section 1); {} when there is none."""
    try:
        text = _read(path + "-m")
    except FileNotFoundError:
        return {}
    pairs = (pair.split(b"\x02") for pair in text.split(b"\x01"))
    return {name.decode(): value.decode() for name, value in pairs}


def compare(ledger: Ledger, group: str, servers: Sequence[Server]) -> list[str]:
    """What is wrong on which server; [] when every server has all that was acknowledged.

    Also files that nobody was told of have to be the same everywhere: an upload whose answer got
    lost is on every server or on none.
    """
    problems: list[str] = []
    known: set[str] = set()
    for file in ledger.in_group(group):
        known |= {file.name, file.name + "-m"}
        found = [(server, _version_on(server, file.name)) for server in servers]
        allowed = file.versions()
        for server, version in found:
            if version not in allowed:
                problems.append(_describe(server, file, version))
        if len({version for _, version in found}) > 1 and all(v in allowed for _, v in found):
            states = ", ".join(f"{server.name}: {_brief(version)}" for server, version in found)
            problems.append(f"{file.file_id} differs: {states} {_history(file)}")
    problems += _compare_unknown(ledger, servers, known)
    return problems


def _version_on(server: Server, name: str) -> Version:
    path = str(server.path_of(name))
    metadata = read_metadata(path)
    try:
        data: bytes | None = _read(path)
    except FileNotFoundError:
        # Metadata without its file must not stay either.
        return Version(None, tuple(sorted(metadata.items())))
    return Version.of(data, metadata)


def _compare_unknown(
    ledger: Ledger, servers: Sequence[Server], known: Container[str]
) -> Iterator[str]:
    contents: list[dict[str, bytes]] = []
    for server in servers:
        files = files_of(server)
        contents.append({n: digest(_read(p)) for n, p in files.items() if n not in known})
    for name in sorted(set().union(*contents)):
        values = [content.get(name) for content in contents]
        if len(set(values)) > 1:
            states = ", ".join(
                f"{server.name}: {value.hex()[:8] if value else 'absent'}"
                for server, value in zip(servers, values, strict=True)
            )
            yield f"{name}, which no client knows, differs: {states}"
        elif values[0] not in ledger.unanswered_contents:
            yield f"{name} is on every server, and nobody uploaded it"


def files_of(server: Server) -> dict[str, str]:
    """Every file of all store paths: ``M00/HH/HH/...`` -> where it is on the disk."""
    found: dict[str, str] = {}
    for index, store_path in enumerate(server.store_paths):
        data = f"{store_path}/data"
        for high in filter(_IS_HEX, os.listdir(data)):
            for low in filter(_IS_HEX, os.listdir(f"{data}/{high}")):
                directory = f"{high}/{low}"
                for name in os.listdir(f"{data}/{directory}"):
                    found[f"M{index:02X}/{directory}/{name}"] = f"{data}/{directory}/{name}"
    return found


def _read(path: str) -> bytes:
    with open(path, "rb", buffering=0) as file:
        return file.read()


def _describe(server: Server, file: File, version: Version) -> str:
    wanted = file.versions()[0]
    if version.data is None and wanted.data is not None:
        what = "is missing"
    elif version.data is not None and wanted.data is None:
        what = "was deleted and is there"
    elif version.data != wanted.data:
        what = f"has other content: {_difference(version.data or b'', wanted.data or b'')}"
    else:
        what = f"has metadata {dict(version.metadata)} instead of {dict(wanted.metadata)}"
    return f"{file.file_id} on {server.name} {what} {_history(file)}"


def _difference(found: bytes, wanted: bytes) -> str:
    same = 0
    for left, right in zip(found, wanted, strict=False):
        if left != right:
            break
        same += 1
    return f"{len(found)} bytes instead of {len(wanted)}, the same up to {same}"


def _brief(version: Version) -> str:
    if version.data is None:
        return "absent"
    return f"{len(version.data)} bytes {digest(version.data).hex()[:8]} {dict(version.metadata)}"


def _history(file: File) -> str:
    return f"[{'; '.join(file.history)}]"


def assert_everywhere(ledger: Ledger, group: str, servers: Sequence[Server]) -> None:
    """Fail with everything that `compare` finds wrong."""
    problems = compare(ledger, group, servers)
    assert not problems, (
        f"{len(problems)} differences; {ledger.acknowledged} operations were acknowledged, "
        f"{ledger.unanswered} not answered\n" + "\n".join(problems[:20])
    )
