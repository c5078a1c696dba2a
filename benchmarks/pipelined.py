"""A client that keeps many changes of names in flight, as a mount does that answers ahead.

It does nothing else, so that the storage is what is measured.
"""

from __future__ import annotations

import os
import socket
import stat
import struct
import time
from collections.abc import Callable, Iterable, Sequence

from fdfsfuse.proto import names
from fdfsfuse.proto.header import HEADER_SIZE, pack_header
from fdfsfuse.proto.names_answers import Message

DIRECTORY = stat.S_IFDIR | 0o755
SYMLINK = stat.S_IFLNK | 0o777
FILE = stat.S_IFREG | 0o644
_HEADER = struct.Struct(">QBB")
_RECV_SIZE = 256 << 10
_PAUSE_S = 0.0001


class Pipeline:
    """A session on a blocking socket."""

    def __init__(self, address: tuple[str, int], in_flight: int) -> None:
        self._sock = socket.create_connection(address)
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._in_flight = in_flight
        self._number = 0
        self._rest = b""
        opening = names.OpenSession(names.VERSION, 0, os.urandom(16), "benchmark", 10.0)
        body = names.encode(opening)
        self._sock.sendall(pack_header(len(body), names.OPEN_SESSION) + body)
        head = self._sock.recv(HEADER_SIZE, socket.MSG_WAITALL)
        length, _, status = _HEADER.unpack(head)
        if status:
            raise OSError(status, os.strerror(status))
        self._sock.recv(length, socket.MSG_WAITALL)

    def close(self) -> None:
        """End the connection."""
        self._sock.close()

    def run(
        self, requests: Sequence[names.Request], rate: float = 0, gather_s: float = 0
    ) -> list[Message]:
        """Send *requests*; the answers, in order.

        Each by itself and as fast as answers come, or *rate* per second, those of *gather_s*
        seconds together.

        Raises:
            OSError: one was refused.
        """
        first, answered, sent, lowest = self._number + 1, 0, 0, 0
        answers: list[bytes] = [b""] * len(requests)
        bodies = [names.encode(request) for request in requests]
        start = time.perf_counter()
        self._sock.setblocking(not rate)
        while answered < len(bodies):
            due = len(bodies)
            if rate:
                time.sleep(max(gather_s, _PAUSE_S))
                due = min(due, int((time.perf_counter() - start) * rate))
            frames: list[bytes] = []
            while sent < due and sent - answered < self._in_flight:
                ids = names.FRAME_IDS.pack(first + sent, first + lowest)
                size = len(ids) + len(bodies[sent])
                frames.append(pack_header(size, names.REQUEST) + ids + bodies[sent])
                sent += 1
            if gather_s and frames:
                frames = [b"".join(frames)]
            for frame in frames:
                self._sock.sendall(frame)
            for number, status, answer in self._receive():
                if status:
                    raise OSError(status, f"{requests[number - first]}: {os.strerror(status)}")
                answers[number - first] = answer
                answered += 1
            while lowest < len(answers) and answers[lowest]:
                lowest += 1
        self._number += len(bodies)
        return [
            names.decode_answer(type(request), answer)
            for request, answer in zip(requests, answers, strict=True)
        ]

    def _receive(self) -> Iterable[tuple[int, int, bytes]]:
        """(id, status, body) of what has arrived."""
        try:
            data = self._rest + self._sock.recv(_RECV_SIZE)
        except BlockingIOError:
            return
        position = 0
        while len(data) - position >= HEADER_SIZE:
            length, command, status = _HEADER.unpack_from(data, position)
            end = position + HEADER_SIZE + length
            if end > len(data):
                break
            body = data[position + HEADER_SIZE : end]
            position = end
            if command == names.ANSWER:
                yield names.ANSWER_ID.unpack_from(body)[0], status, body[names.ANSWER_ID.size :]
        self._rest = data[position:]


def measure(
    address: tuple[str, int],
    cpu_s: Callable[[], float],
    count: int,
    in_flight: int,
    rate: float,
    gather_s: float,
) -> None:
    """Print what *count* changes of each kind cost the storage, whose CPU *cpu_s* tells."""
    pipeline = Pipeline(address, in_flight)
    now = time.time_ns()

    def run(title: str, requests: Sequence[names.Request]) -> list[Message]:
        cpu, start = cpu_s(), time.perf_counter()
        answers = pipeline.run(requests, rate, gather_s)
        wall = time.perf_counter() - start
        cpu = cpu_s() - cpu
        each = cpu / len(requests) * 1e6
        print(
            f"{title:24} {in_flight:3} in flight {len(requests) / wall:8.0f} /s"
            f" {each:7.0f} us CPU of the storage",
            flush=True,
        )
        return answers

    parents: list[int] = []
    for name in (b"one", b"two"):
        made = pipeline.run([names.Create(names.ROOT_INO, name, DIRECTORY, 0, 0, now)])[0]
        assert isinstance(made, names.Attr)
        parents.append(made.ino)
    one, two = parents
    every = range(count)

    def create(mode: int, target: bytes = b"") -> list[names.Request]:
        return [names.Create(one, b"%d" % n, mode, 0, 0, now, target=target) for n in every]

    def remove(parent: int, prefix: bytes, directory: bool) -> list[names.Request]:
        return [names.Remove(parent, b"%s%d" % (prefix, n), directory, now) for n in every]

    made_attrs = run("mkdir", create(DIRECTORY))
    inos = [made.ino for made in made_attrs if isinstance(made, names.Attr)]
    run("setattr", [names.SetAttr(ino, now, mode=0o700) for ino in inos])
    run("rename", [names.Rename(one, b"%d" % n, one, b"r%d" % n, 0, now) for n in every])
    run("rename elsewhere", [names.Rename(one, b"r%d" % n, two, b"%d" % n, 0, now) for n in every])
    run("rmdir", remove(two, b"", True))
    run("symlink", create(SYMLINK, b"target"))
    run("unlink of a symlink", remove(one, b"", False))
    run("create", create(FILE))
    run("unlink", remove(one, b"", False))
    pipeline.close()
