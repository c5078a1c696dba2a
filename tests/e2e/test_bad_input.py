"""Bad input costs its own connection at most.

Both daemons are attacked with garbage, truncated, oversized and slow requests while a FastDFS
client and a names session are served. Whatever comes, the daemons answer or close, stay within
bounded memory, write nothing outside of their directories and log no traceback.
"""

from __future__ import annotations

import contextlib
import errno
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from fdfsfuse.proto import names
from tests.common.cluster import Cluster, Daemon
from tests.common.plain import PlainClient, PlainError, exchange, recv_exactly
from tests.common.session import BlockingSession, truncate_object, write_object
from tests.common.sizes import can_have
from tests.common.treeload import make_pending, name_pending, status_of
from tests.common.waiting import wait_until

HEADER = struct.Struct(">qBB")
NETWORK_TIMEOUT_S = 2
ANSWER_TIMEOUT_S = 60.0
RSS_GROWTH_MAX_KIB = 64 << 10
BEYOND = (1 << 31, 1 << 32, (1 << 62) + 5, (1 << 63) - 1, -1, -(1 << 63))
"""Body lengths that nobody means."""


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster with a short network timeout."""
    conf = {"network_timeout": NETWORK_TIMEOUT_S, "max_connections": 512}
    directory = tmp_path_factory.mktemp("target")
    with Cluster(directory, tracker_conf=conf, storage_conf=conf) as cluster:
        yield cluster
    for daemon in cluster.daemons:
        assert "cut off" not in daemon.log(), "no attack left a connection in use"


@pytest.fixture(autouse=True)
def served_meanwhile(target: Cluster) -> Iterator[None]:
    """A good client beside every attack; also bounds the memory of both daemons."""
    before = {daemon.name: daemon.rss_kib() for daemon in target.daemons}
    stop = threading.Event()
    errors: list[BaseException] = []
    rounds = 0

    def work() -> None:
        nonlocal rounds
        try:
            with target.client() as client, names_session(target) as session:
                file = session.create(names.ROOT_INO, b"good-%d" % time.monotonic_ns())
                while not stop.is_set():
                    data = b"%d" % rounds * 100
                    file_id = client.upload(data, "good")
                    assert client.download(file_id) == data
                    client.delete(file_id)
                    session.store(file.ino, data)
                    assert session.read(file.ino) == data
                    rounds += 1
                    stop.wait(0.005)
        except BaseException as exc:
            errors.append(exc)

    thread = threading.Thread(target=work)
    thread.start()
    wait_until(lambda: rounds > 0 or errors, "the good client to be served")
    yield
    here = rounds
    with contextlib.suppress(TimeoutError):
        wait_until(lambda: rounds > here + 1 or errors, "service after the attack")
    stop.set()
    thread.join()
    assert not errors, errors
    assert rounds > here, "the good client is served after the attack"
    for daemon in target.daemons:
        grown = daemon.rss_kib() - before[daemon.name]
        assert grown < RSS_GROWTH_MAX_KIB, f"{daemon.name} grew by {grown} KiB"


def names_session(cluster: Cluster) -> BlockingSession:
    storage = cluster.storage()
    return BlockingSession((storage.address, storage.port))


def attack(daemon: Daemon, data: bytes, *, half_close: bool = True) -> bytes:
    """Send *data*, and return all that comes back until the daemon closes."""
    with daemon.connect(ANSWER_TIMEOUT_S) as sock:
        answer = bytearray()
        with contextlib.suppress(ConnectionError):
            sock.sendall(data)
            if half_close:
                sock.shutdown(socket.SHUT_WR)
            while chunk := sock.recv(65536):
                answer += chunk
        return bytes(answer)


def statuses(answer: bytes) -> list[int]:
    """The status bytes of back-to-back responses without bodies."""
    assert len(answer) % HEADER.size == 0, answer
    found = []
    for start in range(0, len(answer), HEADER.size):
        length, command, status = HEADER.unpack_from(answer, start)
        assert (length, command) == (0, 100)
        found.append(status)
    return found


def group_field(name: str = "group1") -> bytes:
    return name.encode().ljust(16, b"\0")


@pytest.fixture(params=["tracker", "storage"])
def daemon(request: pytest.FixtureRequest, target: Cluster) -> Daemon:
    return target.tracker if request.param == "tracker" else target.storage()


# --- any bytes ----------------------------------------------------------------------------------


def test_garbage(daemon: Daemon) -> None:
    draw = random.Random(1)
    for _ in range(150):
        attack(daemon, draw.randbytes(draw.choice((1, 9, 10, 11, 100, 5000))))


def test_every_command_with_random_bodies(daemon: Daemon) -> None:
    """Bodies of a right length but with any content: an answer or a close, never silence."""
    draw = random.Random(2)
    for command in range(256):
        for size in (0, 1, 16, draw.randrange(200)):
            attack(daemon, HEADER.pack(size, command, 0) + draw.randbytes(size))


def test_every_command_with_plausible_bodies(daemon: Daemon) -> None:
    """Small numbers and right-looking fields get past the first checks."""
    draw = random.Random(3)
    parts: list[Callable[[], bytes]] = [
        lambda: struct.pack(">q", draw.choice((0, 1, 5, 44, 100, -1, 1 << 40, (1 << 63) - 1))),
        lambda: group_field(draw.choice(("group1", "group2", "../x"))),
        lambda: b"M00/00/00/" + draw.randbytes(27).hex().encode()[:34],
        lambda: b"M00/00/00/wKgDr0t8bVaAAAAAAAAACw1KEYU551.txt",
        lambda: bytes([draw.randrange(256)]),
        lambda: struct.pack(">I", draw.choice((0, 3, 0xFFFFFFFF))),
        lambda: b"127.0.0.1".ljust(15, b"\0"),
    ]
    for command in range(256):
        for _ in range(4):
            body = b"".join(draw.choice(parts)() for _ in range(draw.randrange(1, 7)))
            attack(daemon, HEADER.pack(len(body), command, draw.randrange(4)) + body)


@pytest.mark.parametrize("length", BEYOND)
def test_absurd_lengths(daemon: Daemon, length: int) -> None:
    for command in (*range(10, 40), *range(60, 112), *range(128, 136), 200, 255):
        attack(daemon, HEADER.pack(length, command, 0) + b"x" * 100)


def test_requests_cut_off_anywhere(target: Cluster) -> None:
    name = b"M00/00/00/wKgDr0t8bVaAAAAAAAAACw1KEYU551.txt"
    storage_requests = [
        (11, b"\xff" + struct.pack(">q", 64) + b"txt\0\0\0" + b"x" * 64),
        (13, struct.pack(">qqc", len(name), 3, b"O") + group_field() + name + b"a\x02b"),
        (14, struct.pack(">qq", 0, 0) + group_field() + name),
        (24, struct.pack(">qq", len(name), 5) + name + b"12345"),
        (34, struct.pack(">qqq", len(name), 0, 5) + name + b"12345"),
        (names.OPEN_SESSION, names.encode(names.OpenSession(1, 0, b"t" * 16, "cut"))),
    ]
    tracker_requests = [(101, b""), (102, group_field() + name), (92, group_field())]
    for daemon, requests in (
        (target.storage(), storage_requests),
        (target.tracker, tracker_requests),
    ):
        for command, body in requests:
            packet = HEADER.pack(len(body), command, 0) + body
            for end in (*range(0, 30, 3), len(packet) // 2, len(packet) - 1):
                attack(daemon, packet[:end])


def test_byte_by_byte(target: Cluster) -> None:
    """A slow but correct client is served."""
    with target.storage().connect() as sock:
        packet = HEADER.pack(0, 111, 0)
        for _ in range(3):
            for number in range(len(packet)):
                sock.sendall(packet[number : number + 1])
                time.sleep(0.005)
            assert recv_exactly(sock, 10) == HEADER.pack(0, 100, 0)


# --- too slow, too many -------------------------------------------------------------------------


def test_slow_and_half_open_connections_are_closed(daemon: Daemon) -> None:
    """Nothing, half a header, half a body, and a trickle: each is closed after the timeout."""
    starts = [b"", b"\0\0\0", HEADER.pack(1000, 14, 0), HEADER.pack(1000, 92, 0) + b"x" * 500]
    socks = [daemon.connect(30) for _ in range(4 * 20)]
    try:
        for number, sock in enumerate(socks):
            sock.sendall(starts[number % 4])
        begin = time.monotonic()
        for sock in socks:
            # A storage may refuse the command at once, and then closes as well.
            with contextlib.suppress(ConnectionError):
                while sock.recv(100):
                    pass
        took = time.monotonic() - begin
        assert took < NETWORK_TIMEOUT_S + 30, "all of them are closed"
    finally:
        for sock in socks:
            sock.close()


def test_an_idle_connection_is_kept_after_a_request(daemon: Daemon) -> None:
    with daemon.connect(30) as sock:
        exchange(sock, 111)
        time.sleep(NETWORK_TIMEOUT_S * 2 + 1)
        exchange(sock, 111)


def test_more_connections_than_allowed(daemon: Daemon, target: Cluster) -> None:
    """A flood of half-open connections does not keep good clients out for long."""
    flood: list[socket.socket] = []
    daemon.allow_log("refused|max_connections")
    try:
        for _ in range(800):
            with contextlib.suppress(OSError):
                flood.append(daemon.connect(5))

        def served() -> bool:
            try:
                with PlainClient((target.tracker.address, target.tracker.port), 5) as client:
                    return client.download(client.upload(b"through the flood")) != b""
            except (OSError, EOFError):
                return False

        wait_until(served, "a new client to be served", timeout_s=NETWORK_TIMEOUT_S + 30)
    finally:
        for sock in flood:
            sock.close()


def test_clients_that_do_not_read_their_answers(target: Cluster) -> None:
    """Answers that nobody takes: bounded memory, and the connection ends."""
    storage = target.storage()
    with target.client() as client:
        file_id = client.upload(b"z" * 20_000_000)
        name = file_id.split("/", 1)[1].encode()
        body = struct.pack(">qq", 0, 0) + group_field() + name
        before = storage.rss_kib()
        socks = []
        for _ in range(20):
            sock = storage.connect()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.sendall((HEADER.pack(len(body), 14, 0) + body) * 3)
            socks.append(sock)
        time.sleep(1)
        assert storage.rss_kib() - before < RSS_GROWTH_MAX_KIB
        for sock in socks:
            sock.close()
        client.delete(file_id)


# --- names and paths ----------------------------------------------------------------------------

ESCAPES = [
    b"M00/../../../../../../etc/passwd",
    b"M00/00/00/../../../../etc/passwd",
    b"M00/00/00/..",
    b"M00/00/00/.",
    b"M00/00/00/" + b"x" * 40 + b"/../../../../../etc/passwd",
    b"M00/00/00/abc\0/../../../../etc/passwd",
    b"M00/00/..//../../../../../../../etc/passwd",
    b"/etc/passwd-that-is-long-enough",
    b"../../../../../etc/passwd",
    b"M00//etc/passwd/abcdefghijkl",
    b"MFF/00/00/wKgDr0t8bVaAAAAAAAAACw1KEYU551.txt",
    b"M0G/00/00/wKgDr0t8bVaAAAAAAAAACw1KEYU551.txt",
    b"M00/00/0g/wKgDr0t8bVaAAAAAAAAACw1KEYU551.txt",
    b"M00/\xff\xfe/00/wKgDr0t8bVaAAAAAAAAACw1KEYU551.txt",
    b"../sync/binlog.000",
    b"M00/../sync/binlog.000",
]


@pytest.mark.parametrize("name", ESCAPES)
def test_names_never_leave_the_store_path(target: Cluster, name: bytes) -> None:
    storage = target.storage()
    n = len(name)
    before = sorted(path for path in storage.directory.rglob("*") if "data/" not in str(path))
    requests = [
        (12, group_field() + name),
        (13, struct.pack(">qqc", n, 3, b"O") + group_field() + name + b"a\x02b"),
        (14, struct.pack(">qq", 0, 0) + group_field() + name),
        (15, group_field() + name),
        (22, group_field() + name),
        (24, struct.pack(">qq", n, 5) + name + b"12345"),
        (34, struct.pack(">qqq", n, 0, 5) + name + b"12345"),
        (36, struct.pack(">qq", n, 0) + name),
        (38, name),
        (21, struct.pack(">qq", n, 3) + b"_x".ljust(16, b"\0") + b"txt\0\0\0" + name + b"abc"),
    ]
    for command, body in requests:
        answer = attack(storage, HEADER.pack(len(body), command, 0) + body)
        allowed = {errno.EINVAL, errno.ENOENT}
        if command == 14:  # "not a regular file" is for . and ..
            allowed.add(errno.EISDIR)
        assert set(statuses(answer)) <= allowed, command
    after = sorted(path for path in storage.directory.rglob("*") if "data/" not in str(path))
    assert before == after
    with names_session(target) as session:
        text = name.decode("latin-1")
        for request in (
            names.LookupObject(text),
            names.Paths(text),
            names.Adopt(text, 1, b"stolen", False, 0, 0, 0),
            names.ListXattrs(0, text),
            names.SetXattr(0, b"user.a", b"b", 0, 0, text),
            names.RemoveXattr(0, b"user.a", 0, text),
        ):
            assert refusal(session, request) in REFUSED, request
    for status in (
        status_of(lambda: write_object(storage_address(target), text, 1, 0, b"x")),
        status_of(lambda: truncate_object(storage_address(target), text, 1, 0)),
    ):
        assert status in REFUSED


@pytest.mark.parametrize("extension", [b"../..", b"a/b", b"a\0b", b"\xff", b"a b", b"*"])
def test_bad_extensions(target: Cluster, extension: bytes) -> None:
    body = b"\xff" + struct.pack(">q", 3) + extension.ljust(6, b"\0") + b"abc"
    for command in (11, 23):
        answer = attack(target.storage(), HEADER.pack(len(body), command, 0) + body)
        if extension == b"a\0b":  # what is behind the NUL does not count
            assert len(answer) > HEADER.size or statuses(answer) == [errno.EINVAL]
        else:
            assert statuses(answer) == [errno.EINVAL]


# --- names sessions -----------------------------------------------------------------------------

REFUSED = {
    errno.EINVAL,
    errno.ENOENT,
    errno.EPERM,
    errno.ENAMETOOLONG,
    errno.ESTALE,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ERANGE,
    errno.E2BIG,
    errno.EFBIG,
    errno.EEXIST,
    errno.ENODATA,
    errno.EOPNOTSUPP,
    errno.EBUSY,
    errno.EMLINK,
    errno.EACCES,
    errno.EOVERFLOW,
    errno.ENOTEMPTY,
    errno.EREMOTEIO,
}
U64, I63 = (1 << 64) - 1, (1 << 63) - 1


@pytest.fixture
def too_large(tmp_path: Path) -> list[int]:
    """Sizes that the disk of a storage, which is that of *tmp_path*, refuses."""
    return [] if can_have(tmp_path, 1 << 62) else [1 << 62]


def storage_address(cluster: Cluster) -> tuple[str, int]:
    return cluster.storage().address, cluster.storage().port


def refusal(session: BlockingSession, request: names.Request) -> int:
    """The status of a request; 0 when it was carried out, EINVAL when it cost the connection."""
    try:
        session.send(request)
        answer = session.receive()[2]
    except (EOFError, ConnectionError):
        return errno.EINVAL
    return (answer.errno or 0) if isinstance(answer, OSError) else 0


BAD_NAMES = [b"", b".", b"..", b"a/b", b"/", b"a\0b", b"x" * 256, b"../../etc"]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_that_no_directory_can_have(target: Cluster, name: bytes) -> None:
    with names_session(target) as session:
        file = session.create(1, b"f%d" % time.monotonic_ns())
    requests: list[names.Request] = [
        names.Create(1, name, 0o100644, 0, 0, 0),
        names.Create(1, name, 0o040755, 0, 0, 0),
        names.Rename(1, b"missing", 1, name, 0, 0),
        names.Rename(1, name, 1, b"new", 0, 0),
        names.Link(file.ino, 1, name, 0),
        names.Lookup(1, name),
        names.Remove(1, name, False, 0),
        names.Remove(1, name, True, 0),
    ]
    for request in requests:
        with names_session(target) as session:
            assert refusal(session, request) in REFUSED, request
    with names_session(target) as session:
        assert all(entry.name != name for entry in session.read_dir(1))


def test_absurd_values_in_names_requests(target: Cluster, too_large: list[int]) -> None:
    with names_session(target) as session:
        file = session.create(1, b"file%d" % time.monotonic_ns())
        session.store(file.ino, b"content")
        directory = session.mkdir(1, b"dir%d" % time.monotonic_ns())
    requests: list[names.Request] = []
    for ino in (0, -1, U64, I63, -(1 << 63), file.ino + 10**6):
        requests += [
            names.GetAttr(ino),
            names.Lookup(ino, b"x"),
            names.ReadDir(ino, 0, 10),
            names.Open(ino, 100),
            names.SetAttr(ino, 0, mode=0o644),
            names.SetXattr(ino, b"user.a", b"b", 0, 0),
            names.StoreContent(ino, b"x", 0),
            names.NewObject(ino),
            names.MakeWritable(ino),
            names.Truncate(ino, 0, 0),
            names.Link(ino, 1, b"link", 0),
            names.Create(ino, b"x", 0o100644, 0, 0, 0),
            names.NameObject(ino, "M00/00/00/wKgDr0t8bVaAAAAAAAAACw1KEYU551.txt", 1, 0),
        ]
    for size in (-1, U64, I63, *too_large):
        requests += [
            names.Truncate(file.ino, size, 0),
            names.CommitWrite(file.ino, "M00/00/00/wKgDr0t8bVaAAAAAAAAACw1KEYU551.txt", size, 0),
        ]
    requests += [
        names.Create(1, b"bad-mode", 0o777777, 0, 0, 0),
        names.Create(1, b"no-type", 0o644, 0, 0, 0),
        names.Create(1, b"negative", 0o100644, -5, 0, 0),
        names.Create(1, b"uid", 0o100644, U64, 0, 0),
        names.Create(1, b"time", 0o100644, 0, 0, U64),
        names.Create(1, b"long-target", 0o120777, 0, 0, 0, 0, b"x" * 100_000),
        names.Create(1, b"M00", 0o040755, 0, 0, 0),
        names.Create(1, b"MFF", 0o100644, 0, 0, 0),
        names.Rename(1, b"x", 1, b"y", 77, 0),
        names.Rename(1, b"x", 1, b"y", U64, 0),
        names.SetAttr(file.ino, 0, uid=-2),
        names.SetAttr(file.ino, 0, mtime_ns=U64),
        names.SetXattr(file.ino, b"", b"v", 0, 0),
        names.SetXattr(file.ino, b"x" * 300, b"v", 0, 0),
        names.SetXattr(file.ino, b"user." + b"x" * 300, b"v", 0, 0),
        names.SetXattr(file.ino, b"user.a", b"v" * 70_000, 0, 0),
        names.SetXattr(file.ino, b"user.a", b"v", 3, 0),
        names.SetXattr(file.ino, b"user.a\0b", b"v", 0, 0),
        names.StoreContent(directory.ino, b"x", 0),
        names.ReadDir(file.ino, 0, 10),
        names.ReadDir(directory.ino, -5, -10),
        names.ReadDir(directory.ino, U64, U64),
        names.ListObjects("../..", "", 10),
        names.ListObjects("M00/../..", "", 10),
        names.ListObjects("M00", "", -1),
        names.ListObjects("M77", "", 10),
        names.Open(file.ino, -1),
        names.Open(file.ino, U64),
        names.Holds([U64, -1, 0] * 1000, [U64] * 1000),
    ]
    for request in requests:
        with names_session(target) as session:
            refusal(session, request)  # some are harmless; none may hurt
    with names_session(target) as session:
        assert session.read(file.ino) == b"content"
        assert {e.name for e in session.read_dir(1)}.isdisjoint({b"M00", b"MFF"})
        assert session.call(names.GetAttr(file.ino), names.Attr).mtime_ns < I63


def test_a_names_session_cannot_touch_objects_of_clients(target: Cluster) -> None:
    """WRITE_OBJECT and NameObject take pending and in-place objects only."""
    address = storage_address(target)
    with target.client() as client, names_session(target) as session:
        plain = client.upload(b"plain content", "txt")
        appender = client.upload(b"appender", "txt", appender=True)
        file = session.create(1, b"victim%d" % time.monotonic_ns())
        view = session.opened.view.number
        other = session.create(1, b"other%d" % time.monotonic_ns())
        made = make_pending(session, other.ino, b"x" * 1_500_000)
        for file_id in (plain, appender):
            name = file_id.split("/", 1)[1]
            assert status_of(partial(write_object, address, name, view, 0, b"evil"))
            assert status_of(partial(truncate_object, address, name, view, 0))
            assert refusal(session, names.NameObject(file.ino, name, 8, 0)) in REFUSED
            assert refusal(session, names.CommitWrite(file.ino, name, 8, 0)) in REFUSED
        assert client.download(plain) == b"plain content"
        assert client.download(appender) == b"appender"
        # Another session's pending object, a wrong view, a size that it has not.
        with names_session(target) as thief:
            stolen = names.NameObject(file.ino, made.file_id, 1_500_000, 0)
            assert refusal(thief, stolen) in REFUSED
        assert status_of(lambda: write_object(address, made.file_id, view + 1, 0, b"x"))
        assert refusal(session, names.NameObject(other.ino, made.file_id, 7, 0)) in REFUSED
        attr = name_pending(session, other.ino, made, 1_500_000)
        assert client.download(f"group1/{attr.file_id}") == b"x" * 1_500_000


def test_write_object_with_absurd_ranges(target: Cluster, too_large: list[int]) -> None:
    address = storage_address(target)
    with names_session(target) as session:
        file = session.create(1, b"range%d" % time.monotonic_ns())
        made = session.call(names.NewObject(file.ino), names.ObjectMade)
        for offset in (-1, -(1 << 63), I63, U64, *too_large):
            assert status_of(partial(write_object, address, made.file_id, made.view, offset, b"x"))
        for size in (-1, I63, U64, *too_large):
            assert status_of(partial(truncate_object, address, made.file_id, made.view, size))
        heads = [
            b"",
            b"\xff\xff\xff\xff",
            struct.pack(">I", 1 << 31) + b"x" * 100,
            struct.pack(">I", 5) + b"\xc1" * 5,
            struct.pack(">I", 300) + b"x" * 10,
        ]
        good = names.encode(names.WriteObject(made.file_id, made.view, 0, 1000))
        heads += [struct.pack(">I", len(good)) + good + b"short"]
        for body in heads:
            for claimed in (len(body), 1 << 40):
                attack(target.storage(), HEADER.pack(claimed, names.WRITE_OBJECT, 0) + body)
        attr = session.call(names.NameObject(file.ino, made.file_id, 0, 0), names.Attr)
        assert attr.size == 0


def test_garbage_frames_in_a_session(target: Cluster) -> None:
    draw = random.Random(4)
    frames = [
        HEADER.pack(-1, names.REQUEST, 0),
        HEADER.pack(1 << 40, names.REQUEST, 0),
        HEADER.pack(names.FRAME_MAX + 1, names.REQUEST, 0) + b"x" * 1000,
        HEADER.pack(0, names.REQUEST, 0),
        HEADER.pack(15, names.REQUEST, 0) + b"x" * 15,
        HEADER.pack(16, names.REQUEST, 0) + b"x" * 16,
        HEADER.pack(20, names.REQUEST, 0) + b"\0" * 20,
        HEADER.pack(17, names.REQUEST, 0) + b"\xff" * 16 + b"\xc1",
        HEADER.pack(0, names.ANSWER, 0),
        HEADER.pack(0, 11, 0),
        HEADER.pack(0, 255, 255),
        draw.randbytes(1000),
    ]
    nested = struct.pack(">QQ", 1, 1) + b"\x94\x01\x01\xc4\x01x" + b"\x91" * 500_000 + b"\x01"
    frames.append(HEADER.pack(len(nested), names.REQUEST, 0) + nested)
    for _ in range(50):
        body = struct.pack(">QQ", draw.randrange(5), draw.randrange(5))
        body += draw.randbytes(draw.randrange(60))
        frames.append(HEADER.pack(len(body), names.REQUEST, 0) + body)
    for frame in frames:
        with names_session(target) as session:
            session.sock.settimeout(ANSWER_TIMEOUT_S)
            with contextlib.suppress(ConnectionError):
                session.sock.sendall(frame)
                session.sock.shutdown(socket.SHUT_WR)
                while session.sock.recv(65536):
                    pass


def test_opening_sessions_with_nonsense(target: Cluster) -> None:
    storage = target.storage()
    good = names_session(target)
    opens = [
        b"",
        b"\xc1",
        names.encode(names.OpenSession(0, 0, b"t" * 16, "no version")),
        names.encode(names.OpenSession(1, 0, b"", "no token")),
        names.encode(names.OpenSession(1, 0, b"t" * 100_000, "long token")),
        names.encode(names.OpenSession(1, 0, b"t" * 16, "c" * 200_000)),
        names.encode(names.OpenSession(1, -1, b"t" * 16, "negative")),
        names.encode(names.OpenSession(1, U64, b"t" * 16, "unknown")),
        names.encode(names.OpenSession(1, good.number, b"w" * 16, "stolen")),
    ]
    for body in opens:
        answer = attack(storage, HEADER.pack(len(body), names.OPEN_SESSION, 0) + body)
        assert len(statuses(answer)) <= 1, "nobody gets a session for that"
        assert 0 not in statuses(answer)
    good.call(names.KeepAlive(), names.Done)
    good.sock.close()


def test_a_session_that_sends_but_never_reads(target: Cluster) -> None:
    """Requests without end, answers not taken: bounded, and others go on."""
    storage = target.storage()
    before = storage.rss_kib()
    with names_session(target) as session:
        directory = session.mkdir(1, b"big%d" % time.monotonic_ns())
        for number in range(300):
            session.create(directory.ino, b"%0200d" % number)
        session.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        session.sock.settimeout(0.5)
        request = names.encode(names.ReadDir(directory.ino, 0, 1000))
        with contextlib.suppress(OSError):
            for number in range(1000, 100_000):
                body = struct.pack(">QQ", number, number) + request
                session.sock.sendall(HEADER.pack(len(body), names.REQUEST, 0) + body)
        assert storage.rss_kib() - before < RSS_GROWTH_MAX_KIB


def test_many_sessions(target: Cluster) -> None:
    sessions: list[BlockingSession] = []
    try:
        for _ in range(100):
            sessions.append(names_session(target))
        for session in sessions:
            session.call(names.KeepAlive(), names.Done)
    finally:
        for session in sessions:
            session.sock.close()


def test_storage_only_commands_of_the_tracker_need_a_join(target: Cluster) -> None:
    """Heartbeats and reports of somebody who has not joined change nothing."""
    before = target.states()
    for command in (83, 84, 85, 77, 60, 78, 93, 108, 94):
        for body in (b"", b"\0" * 16, group_field() + b"10.0.0.1".ljust(16, b"\0"), b"\xff" * 336):
            attack(target.tracker, HEADER.pack(len(body), command, 0) + body)
    assert target.states() == before


def test_join_with_nonsense_makes_no_group(target: Cluster) -> None:
    draw = random.Random(5)
    for size in (0, 1, 100, 107, 108, 130, 200, 1000):
        for fill in (b"\0", b"\xff", b"A", b""):
            body = fill * size if fill else draw.randbytes(size)
            attack(target.tracker, HEADER.pack(len(body), 81, 0) + body)
    with target.client() as client:
        with contextlib.suppress(PlainError):
            client.storage_states("AAAAAAAAAAAAAAAA")
        assert client.download(client.upload(b"still one group")) == b"still one group"
    with target.tracker.connect() as sock:
        groups = exchange(sock, 91)
    assert len(groups) == 113, "only group1 is known"
    assert groups.startswith(b"group1\0")
