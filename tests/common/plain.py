"""A plain FastDFS client for tests, written from protocol/wire.md alone.

It shares no code with fdfsfuse, so that a mistake in our codec cannot hide in the tests.
Blocking, one connection per server.
"""

from __future__ import annotations

import os
import socket
import struct
from types import TracebackType

_HEADER = struct.Struct(">qBB")
_UPLOAD = struct.Struct(">Bq6s")
_RANGE = struct.Struct(">qq16s")
_SET_META = struct.Struct(">qqc16s")
_APPEND = struct.Struct(">qq")
_MODIFY = struct.Struct(">qqq")
_SLAVE = struct.Struct(">qq16s6s")

Address = tuple[str, int]


class PlainError(Exception):
    """The server answered with a status."""

    def __init__(self, command: int, status: int) -> None:
        super().__init__(f"command {command}: status {status} ({os.strerror(status)})")
        self.status = status


def exchange(sock: socket.socket, command: int, body: bytes = b"", flags: int = 0) -> bytes:
    """One request and its answer. Raises PlainError, OSError, EOFError."""
    sock.sendall(_HEADER.pack(len(body), command, flags) + body)
    return read_answer(sock, command)


def read_answer(sock: socket.socket, command: int = 0) -> bytes:
    """The body of one answer. Raises PlainError for a status, EOFError at the end."""
    length, answer, status = _HEADER.unpack(recv_exactly(sock, _HEADER.size))
    if answer != 100:
        raise ValueError(f"command {answer} in an answer")
    body = recv_exactly(sock, length)
    if status:
        raise PlainError(command, status)
    return body


def recv_exactly(sock: socket.socket, count: int) -> bytes:
    """Exactly *count* bytes. Raises EOFError when the peer closes before."""
    chunks = bytearray()
    while len(chunks) < count:
        chunk = sock.recv(min(count - len(chunks), 1 << 20))
        if not chunk:
            raise EOFError(f"closed after {len(chunks)} of {count} bytes")
        chunks += chunk
    return bytes(chunks)


def _group(name: str) -> bytes:
    return name.encode().ljust(16, b"\0")


class PlainClient:
    """Uploads, downloads and changes files by file id (``group1/M00/...``)."""

    def __init__(self, tracker: Address, timeout_s: float = 60.0) -> None:
        self._tracker = tracker
        self._timeout_s = timeout_s
        self._connections: dict[Address, socket.socket] = {}

    def __enter__(self) -> PlainClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        while self._connections:
            self._connections.popitem()[1].close()

    def call(self, address: Address, command: int, body: bytes = b"", flags: int = 0) -> bytes:
        """One exchange on the connection to *address*, which is dropped after any failure."""
        sock = self._connections.get(address)
        if sock is None:
            sock = socket.create_connection(address, self._timeout_s)
            self._connections[address] = sock
        try:
            return exchange(sock, command, body, flags)
        except Exception:
            # A storage closes after status 22 (wire.md section 1).
            self._connections.pop(address).close()
            raise

    def find_store(self, group: str = "") -> tuple[Address, int]:
        """Which storage the tracker names for an upload, and the store path there."""
        if group:
            answer = self.call(self._tracker, 104, _group(group))
        else:
            answer = self.call(self._tracker, 101)
        return _address(answer[16:]), answer[-1]

    def upload(
        self,
        data: bytes,
        extension: str = "",
        *,
        group: str = "",
        appender: bool = False,
        at: tuple[Address, int] | None = None,
    ) -> str:
        """Store *data* and return its file id.

        Here and below, *at* is the storage to ask, instead of the one that the tracker names.
        """
        address, index = at or self.find_store(group)
        head = _UPLOAD.pack(index, len(data), extension.encode())
        answer = self.call(address, 23 if appender else 11, head + data)
        return f"{_text(answer[:16])}/{answer[16:].decode()}"

    def find_fetch(self, file_id: str) -> Address:
        """Which storage the tracker names for reading."""
        return self._find(102, file_id)

    def download(self, file_id: str, offset: int = 0, count: int = 0) -> bytes:
        """The content from *offset* on, *count* bytes or all."""
        group, name = file_id.split("/", 1)
        return self.call(
            self._find(102, file_id), 14, _RANGE.pack(offset, count, _group(group)) + name.encode()
        )

    def download_from(self, storage: Address, group: str, name: str) -> bytes:
        """The whole content of a file name, asked from one storage; the tracker is not needed."""
        return self.call(storage, 14, _RANGE.pack(0, 0, _group(group)) + name.encode())

    def delete(self, file_id: str, *, at: Address | None = None) -> None:
        """Delete the file."""
        group, name = file_id.split("/", 1)
        self.call(at or self._find(103, file_id), 12, _group(group) + name.encode())

    def info(self, file_id: str) -> tuple[int, int, int]:
        """Size, time and crc32."""
        group, name = file_id.split("/", 1)
        answer = self.call(self._find(102, file_id), 22, _group(group) + name.encode())
        size, mtime, crc = struct.unpack(">qqq", answer[:24])
        return size, mtime, crc & 0xFFFFFFFF

    def exists(self, file_id: str) -> bool:
        """Whether the storage knows the file."""
        try:
            self.info(file_id)
        except PlainError as exc:
            if exc.status != 2:
                raise
            return False
        return True

    def set_metadata(
        self,
        file_id: str,
        pairs: dict[str, str],
        flag: bytes = b"O",
        *,
        at: Address | None = None,
    ) -> None:
        """Overwrite (``O``) or merge (``M``) the metadata."""
        group, name = file_id.split("/", 1)
        text = b"\x01".join(k.encode() + b"\x02" + v.encode() for k, v in pairs.items())
        head = _SET_META.pack(len(name), len(text), flag, _group(group))
        self.call(at or self._find(103, file_id), 13, head + name.encode() + text)

    def get_metadata(self, file_id: str) -> dict[str, str]:
        """The metadata; {} when there is none."""
        group, name = file_id.split("/", 1)
        try:
            text = self.call(self._find(103, file_id), 15, _group(group) + name.encode())
        except PlainError as exc:
            if exc.status == 2:
                return {}
            raise
        fields = (pair.split(b"\x02") for pair in text.split(b"\0")[0].split(b"\x01"))
        return {name.decode(): value.decode() for name, value in fields}

    def append(self, file_id: str, data: bytes, *, at: Address | None = None) -> None:
        """Append to an appender file."""
        name = file_id.split("/", 1)[1].encode()
        self.call(
            at or self._find(103, file_id), 24, _APPEND.pack(len(name), len(data)) + name + data
        )

    def modify(self, file_id: str, offset: int, data: bytes, *, at: Address | None = None) -> None:
        """Overwrite a part of an appender file."""
        name = file_id.split("/", 1)[1].encode()
        head = _MODIFY.pack(len(name), offset, len(data))
        self.call(at or self._find(103, file_id), 34, head + name + data)

    def truncate(self, file_id: str, size: int, *, at: Address | None = None) -> None:
        """Set the size of an appender file."""
        name = file_id.split("/", 1)[1].encode()
        self.call(at or self._find(103, file_id), 36, _APPEND.pack(len(name), size) + name)

    def upload_slave(
        self, master: str, prefix: str, extension: str, data: bytes, *, at: Address | None = None
    ) -> str:
        """Store *data* beside the master file and return its file id."""
        group, name = master.split("/", 1)
        head = _SLAVE.pack(len(name), len(data), prefix.encode(), extension.encode())
        answer = self.call(at or self._find(103, master), 21, head + name.encode() + data)
        return f"{group}/{answer[16:].decode()}"

    def regenerate(self, file_id: str, *, at: Address | None = None) -> str:
        """Turn an appender into a normal file; returns its new id."""
        group, name = file_id.split("/", 1)
        answer = self.call(at or self._find(103, file_id), 38, name.encode())
        return f"{group}/{answer[16:].decode()}"

    def storage_states(self, group: str) -> dict[str, int]:
        """Storage id (in ip mode the address) -> status."""
        answer = self.call(self._tracker, 92, _group(group))
        size = 487 if len(answer) % 487 == 0 else 517
        records = (answer[i : i + size] for i in range(0, len(answer), size))
        return {_text(record[2:18]): record[0] for record in records}

    def counters(self, group: str) -> list[dict[str, int]]:
        """The request counters that each storage of the group reported last (92)."""
        answer = self.call(self._tracker, 92, _group(group))
        size, start = (487, 150) if len(answer) % 487 == 0 else (517, 180)
        names = [
            "upload",
            "append",
            "modify",
            "truncate",
            "set_meta",
            "delete",
            "download",
            "get_meta",
            "create_link",
            "delete_link",
        ]
        found = []
        for i in range(0, len(answer), size):
            values = struct.unpack_from(">42q", answer, i + start)
            found.append({name: values[2 * j] for j, name in enumerate(names)})
        return found

    def find_update(self, file_id: str) -> Address:
        """Which storage the tracker names for a change of the file (103)."""
        return self._find(103, file_id)

    def _find(self, command: int, file_id: str) -> Address:
        group, name = file_id.split("/", 1)
        answer = self.call(self._tracker, command, _group(group) + name.encode())
        return _address(answer[16:])


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode()


def _address(field: bytes) -> Address:
    """ip 15 or 45, port 8, perhaps a path index."""
    width = 45 if len(field) >= 53 else 15
    return _text(field[:width]), struct.unpack_from(">q", field, width)[0]
