"""Random requests, right and wrong, to a live storage: each answer must be that of the model."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from tests.common.cluster import Cluster
from tests.common.plain import recv_exactly
from tests.common.sizes import can_have
from tests.daemons.storage_model import Answer, Model, bits_of
from tests.daemons.storage_server import GROUP

TIMEOUT_S = 30.0
WRONG_NAMES = (
    b"M00/00/00/.",
    b"M00/00/00/..",
    b"M00/00/00/fwAAC2sC71qAc1b5AAAACw1KEYU551.txt",
    b"M02/00/00/fwAAC2sC71qAc1b5AAAACw1KEYU551.txt",
    b"M00/0a/00/fwAAC2sC71qAc1b5AAAACw1KEYU551.txt",
    b"Mzz/00/00/fwAAC2sC71qAc1b5AAAACw1KEYU551.txt",
    b"M00/00/00/../../../../etc/passwd",
    b"M00/00/00/../../../../../../../../../../../../etc/passwd",
    b"M00/00/00/.fastdfs_vars_______________________________",
    b"M00/00/00/a name with blanks that is long enough for all",
    b"00/00/fwAAC2sC71qAc1b5AAAACw1KEYU551.txt",
    b"M00/00/00/x",
    b"M",
    b"",
    b"M" * 128,
)
NUMBERS = st.sampled_from([-1, 0, 1, 2, 5, 44, 127, 128, 1000, -(1 << 63), (1 << 63) - 1, 1 << 62])
CONTENTS = st.one_of(
    st.binary(max_size=40),
    st.sampled_from([0, 65536, 65537, 300_000]).map(bytes),
)
MOSTLY = st.sampled_from([True] * 4 + [False])
GROUPS = st.sampled_from([GROUP.encode()] * 12 + [b"group2", b"group1 ", b"", b"group1\0junk"])
EXTENSIONS = st.sampled_from(
    [b"txt", b"", b"tar.gz", b".x", b"a\0bc", b"a/b", b"j g", b"\xff", b"-m"]
)
PREFIXES = st.sampled_from(
    [b"_small", b"-m", b"_x", b"", b"a/b", b"_" * 16, b"_very_long_one", b"a-m"]
)
METADATA = st.one_of(
    st.sampled_from(
        [
            b"",
            b"width\x021024",
            b"b\x022\x01a\x021",
            b"b\x022\x01a\x021\x01",
            b"none",
            b"\x02",
            b"a\x02" + b"v" * 300 + b"\x01" + b"n" * 70 + b"\x02x",
        ]
    ),
    st.lists(st.sampled_from([b"a", b"b", b"\1", b"\2", b"\0", b"value"]), max_size=8).map(
        b"".join
    ),
)


class StorageMachine(RuleBasedStateMachine):
    """Sends requests over one connection, which is made again where the storage closes it."""

    address: tuple[str, int]
    sizes: tuple[int, ...]
    """Large sizes that files may be asked to have."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Model()
        self.gone: list[bytes] = []
        self._socket: socket.socket | None = None

    def teardown(self) -> None:
        self._disconnect()

    # --- sending ------------------------------------------------------------------------------

    def connection(self) -> socket.socket:
        if self._socket is None:
            self._socket = socket.create_connection(self.address, TIMEOUT_S)
        return self._socket

    def _disconnect(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def send(self, command: int, body: bytes, flags: int = 0, cut: int = 0) -> None:
        """Send a request, in two pieces when *cut* is set, and check its answer."""
        expected = self.model.answer(command, body, flags)
        packet = struct.pack(">qBB", len(body), command, flags) + body
        sock = self.connection()
        try:
            if cut:
                sock.sendall(packet[:cut])
            sock.sendall(packet[cut:] if cut else packet)
        except (BrokenPipeError, ConnectionResetError):
            # Closed before it had read all of a request that is too large to be looked at.
            assert expected.closed
        self._check(expected, (command, flags, body[:200]))

    def _check(self, expected: Answer, request: object) -> None:
        sock = self.connection()
        if not expected.silent:
            length, command, status = struct.unpack(">qBB", recv_exactly(sock, 10))
            body = bytearray(recv_exactly(sock, length))
            assert (command, status) == (100, expected.status), request
            if expected.body is None:
                self.model.learn(bytes(body))
            else:
                wanted = bytearray(expected.body)
                body[expected.ignore] = wanted[expected.ignore]
                assert body == wanted, request
        if expected.closed:
            try:
                assert sock.recv(1) == b"", request
            except ConnectionResetError:
                pass
            self._disconnect()

    # --- what requests are made of ------------------------------------------------------------

    def name(self, data: st.DataObject, *, legacy: bool = False) -> bytes:
        """Mostly the name of a file that exists."""
        keys = list(self.model.files)  # in their order: hypothesis wants to repeat a run
        kind = data.draw(st.integers(0, 9))
        if kind < 7 and keys:
            name = self.model.name(data.draw(st.sampled_from(keys))).encode()
            return name[4:] if legacy and kind == 6 and name[:3] == b"M00" else name
        if kind == 7 and self.gone:
            return data.draw(st.sampled_from(self.gone))
        return data.draw(st.sampled_from(WRONG_NAMES))

    def appender(self, data: st.DataObject) -> bytes:
        """Mostly an appender."""
        names = [self.model.name(key) for key in self.model.files]
        appenders = [name for name in names if bits_of(name).appender]
        if data.draw(MOSTLY) and appenders:
            return data.draw(st.sampled_from(appenders)).encode()
        return self.name(data)

    def number(self, data: st.DataObject, right: int) -> int:
        """Mostly *right*."""
        wrong = data.draw(st.integers(0, 19)) == 0
        return int(data.draw(NUMBERS)) if wrong else right

    @initialize()
    def begin(self) -> None:
        """Something to work with."""
        self.send(11, b"\0" + struct.pack(">q6s", 5, b"txt") + b"plain")
        self.send(23, b"\1" + struct.pack(">q6s", 5, b"log") + b"begin")

    # --- rules --------------------------------------------------------------------------------

    @rule(data=st.data(), appender=st.booleans())
    def upload(self, data: st.DataObject, appender: bool) -> None:
        content = data.draw(CONTENTS)
        index = data.draw(st.sampled_from([0, 1, 255, 0, 1, 255, 2, 128]))
        size = self.number(data, len(content))
        head = struct.pack(">Bq6s", index, size, data.draw(EXTENSIONS))
        cut = data.draw(st.sampled_from([0, 0, 0, 5, 20]))
        self.send(23 if appender else 11, head + content, cut=cut)

    @rule(data=st.data())
    def upload_slave(self, data: st.DataObject) -> None:
        master, content = self.name(data), data.draw(CONTENTS)
        head = struct.pack(
            ">qq16s6s",
            self.number(data, len(master)),
            self.number(data, len(content)),
            data.draw(PREFIXES),
            data.draw(EXTENSIONS),
        )
        self.send(21, head + master + content)

    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        name = self.name(data, legacy=True)
        self.gone.append(name)
        self.send(12, data.draw(GROUPS).ljust(16, b"\0") + name)

    @rule(data=st.data(), flag=st.sampled_from([b"O", b"M", b"O", b"M", b"x"]))
    def set_metadata(self, data: st.DataObject, flag: bytes) -> None:
        name, metadata = self.name(data, legacy=True), data.draw(METADATA)
        head = struct.pack(
            ">qqc16s",
            self.number(data, len(name)),
            self.number(data, len(metadata)),
            flag,
            data.draw(GROUPS),
        )
        self.send(13, head + name + metadata)

    @rule(data=st.data())
    def get_metadata(self, data: st.DataObject) -> None:
        name = self.name(data, legacy=True)
        self.send(15, data.draw(GROUPS).ljust(16, b"\0") + name)

    @rule(data=st.data(), padding=st.sampled_from([0, 0, 0, 5]))
    def download(self, data: st.DataObject, padding: int) -> None:
        name = self.name(data, legacy=True)
        offset, count = self.number(data, 0), self.number(data, 0)
        head = struct.pack(">qq16s", offset, count, data.draw(GROUPS))
        self.send(14, head + name + bytes(padding))

    @rule(data=st.data(), flags=st.integers(0, 3))
    def file_info(self, data: st.DataObject, flags: int) -> None:
        self.send(22, data.draw(GROUPS).ljust(16, b"\0") + self.name(data), flags)

    @rule(data=st.data())
    def append(self, data: st.DataObject) -> None:
        name, content = self.appender(data), data.draw(CONTENTS)
        head = struct.pack(">qq", self.number(data, len(name)), self.number(data, len(content)))
        self.send(24, head + name + content, cut=data.draw(st.sampled_from([0, 0, 0, 12])))

    @rule(data=st.data(), offset=st.integers(-1, 80))
    def modify(self, data: st.DataObject, offset: int) -> None:
        name, content = self.appender(data), data.draw(CONTENTS)
        length, size = self.number(data, len(name)), self.number(data, len(content))
        self.send(34, struct.pack(">qqq", length, offset, size) + name + content)

    @rule(data=st.data())
    def truncate(self, data: st.DataObject) -> None:
        name = self.appender(data)
        size = data.draw(st.one_of(st.integers(-1, 100), *map(st.just, self.sizes)))
        head = struct.pack(">qq", self.number(data, len(name)), size)
        self.send(36, head + name + data.draw(st.sampled_from([b"", b"", b"tail"])))

    @rule(data=st.data())
    def regenerate(self, data: st.DataObject) -> None:
        name = self.appender(data)
        self.gone.append(name)
        self.send(38, name)

    @rule(data=st.data())
    def create_link(self, data: st.DataObject) -> None:
        source, signature = self.name(data), data.draw(st.sampled_from([b"s" * 24, b"", b"s" * 64]))
        master = self.name(data) if data.draw(st.booleans()) else b""
        head = struct.pack(
            ">qqq16s16s6s",
            self.number(data, len(master)),
            self.number(data, len(source)),
            self.number(data, len(signature)),
            data.draw(GROUPS),
            data.draw(PREFIXES),
            data.draw(EXTENSIONS),
        )
        self.send(20, head + master + source + signature)

    @rule(command=st.sampled_from([0, 1, 10, 19, 99, 111, 111, 127]), body=st.binary(max_size=20))
    def other(self, command: int, body: bytes) -> None:
        self.send(command, body)

    @rule(
        command=st.sampled_from([11, 12, 13, 14, 15, 20, 21, 22, 23, 24, 34, 36, 38]),
        body=st.binary(max_size=120),
    )
    def noise(self, command: int, body: bytes) -> None:
        self.send(command, body)

    @rule(data=st.data(), commands=st.lists(st.sampled_from([12, 15, 22, 111]), max_size=4))
    def back_to_back(self, data: st.DataObject, commands: list[int]) -> None:
        """Several requests in one piece; those behind one that closes are not answered."""
        packets, answers = b"", []
        for command in commands:
            body = b"" if command == 111 else GROUP.encode().ljust(16, b"\0") + self.name(data)
            packets += struct.pack(">qBB", len(body), command, 0) + body
            answers.append((self.model.answer(command, body), (command, body)))
            if answers[-1][0].closed:
                break
        self.connection().sendall(packets)
        for answer, request in answers:
            self._check(answer, request)

    @rule(command=st.sampled_from([12, 13, 14, 15, 22, 36, 38]), more=st.integers(0, 2))
    def too_large(self, command: int, more: int) -> None:
        self.send(command, b"x" * (262144 - 11 + more))

    @invariant()
    def all_is_well(self) -> None:
        """The connection, if there is one, is in step."""
        if self._socket is not None:
            self.send(111, b"")


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int]]:
    with Cluster(tmp_path_factory.mktemp("fuzz"), groups=(GROUP,), store_paths=2) as cluster:
        storage = cluster.storage(GROUP)
        yield storage.address, storage.port


def test_random_requests_are_answered_as_documented(
    address: tuple[str, int], long_run: bool, tmp_path: Path
) -> None:
    StorageMachine.address = address
    # The model has no disk, so only what the disk refuses may be larger than memory.
    StorageMachine.sizes = (70_000,) if can_have(tmp_path, 1 << 62) else (70_000, 1 << 62)
    run_state_machine_as_test(
        StorageMachine,
        settings=settings(
            max_examples=400 if long_run else 15,
            stateful_step_count=60,
            deadline=None,
            # Names differ from run to run, so a failure cannot be made smaller.
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )
