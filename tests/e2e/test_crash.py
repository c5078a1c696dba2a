"""What was acknowledged survives kill -9 at any moment, and nothing leaks.

The load keeps an exact model of what was acknowledged (tests/common/treeload.py); the storage is
killed at random moments and started again on its data.
"""

from __future__ import annotations

import errno
import os
import random
import signal
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fdfsfuse.proto import names
from fdfsfuse.proto.fileid import decode_name
from tests.common.cluster import Cluster, Storage
from tests.common.mount_load import MountWriter
from tests.common.plain import PlainClient, PlainError
from tests.common.session import BlockingSession, query_view
from tests.common.treeload import (
    BROKEN,
    TreeWorker,
    connect,
    make_pending,
    name_pending,
    status_of,
)
from tests.common.waiting import wait_until

LEASE_S, GRACE_S = 2, 2
SHORT_TIMES = {"names_session_lease": LEASE_S, "names_garbage_grace": GRACE_S}


@pytest.fixture
def short(tmp_path: Path) -> Iterator[Cluster]:
    """A cluster of its own, with a short session lease and grace period."""
    with Cluster(tmp_path / "cluster", storage_conf=SHORT_TIMES) as cluster:
        yield cluster


@contextmanager
def in_threads(*work: Callable[[threading.Event], None]) -> Iterator[None]:
    """Run *work* beside the body; it gets an event that says stop. Raises what it raises."""
    stop = threading.Event()
    errors: list[BaseException] = []

    def guarded(one: Callable[[threading.Event], None]) -> None:
        try:
            one(stop)
        except BaseException as exc:
            errors.append(exc)
            stop.set()

    threads = [threading.Thread(target=guarded, args=(one,)) for one in work]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        if errors:
            # Also when the body has failed, for that is why.
            raise errors[0]


def wait_for_growth(counter: object, attribute: str, by: int) -> None:
    """Wait until *counter.attribute* has grown by *by*."""
    goal = getattr(counter, attribute) + by
    wait_until(lambda: getattr(counter, attribute) >= goal, f"{attribute} to reach {goal}")


class PlainLoad:
    """Uploads and deletes of a FastDFS client, with what was acknowledged.

    ``files`` holds acknowledged uploads, ``deleted`` those whose deletion was acknowledged,
    ``unsure`` those whose deletion has no answer.
    """

    def __init__(self, cluster: Cluster, seed: int) -> None:
        self.cluster = cluster
        self.draw = random.Random(seed)
        self.files: dict[str, bytes] = {}
        self.metadata: dict[str, dict[str, str]] = {}
        self.deleted: set[str] = set()
        self.unsure: set[str] = set()

    def run(self, stop: threading.Event) -> None:
        client = self.cluster.client()
        while not stop.is_set():
            try:
                self.step(client)
            except BROKEN:
                client.close()
                stop.wait(0.05)
            except PlainError as exc:
                # The tracker has no storage to hand out while it is down.
                if exc.status not in (errno.ENOENT,):
                    raise
                stop.wait(0.05)
        client.close()

    def step(self, client: PlainClient) -> None:
        if len(self.files) > 10 and self.draw.random() < 0.4:
            file_id = self.draw.choice(sorted(self.files))
            data = self.files.pop(file_id)
            self.unsure.add(file_id)
            try:
                client.delete(file_id)
            except PlainError:
                self.files[file_id] = data
                self.unsure.discard(file_id)
                raise
            self.unsure.discard(file_id)
            self.metadata.pop(file_id, None)
            self.deleted.add(file_id)
        else:
            data = self.draw.randbytes(self.draw.choice((1, 100, 5000, 400_000)))
            file_id = client.upload(data, "pln")
            self.files[file_id] = data
            pairs = {"number": str(len(self.files))}
            client.set_metadata(file_id, pairs)
            self.metadata[file_id] = pairs

    def check(self) -> None:
        """Everything acknowledged is there, with its metadata; what was deleted is gone."""
        with self.cluster.client() as client:
            for file_id, data in self.files.items():
                assert client.download(file_id) == data, file_id
            for file_id, pairs in self.metadata.items():
                if file_id in self.files:
                    assert client.get_metadata(file_id) == pairs
            for file_id in self.deleted:
                assert not client.exists(file_id)


def base_name(path: Path) -> str:
    """The object's file name for an object or its metadata file."""
    return path.name.removesuffix("-m")


def check_disk(storage: Storage, wanted: set[str], *, also: str = "\0") -> None:
    """Wait until *storage* keeps nothing but *wanted* file names (and their metadata).

    Names that end in *also* may be there too, but must be whole objects.
    """

    def extra() -> list[str]:
        known = {name.rpartition("/")[2] for name in wanted}
        return [
            path.name
            for path in storage.data_files()
            if base_name(path) not in known and not base_name(path).endswith(also)
        ]

    try:
        wait_until(lambda: not extra(), "garbage to go", timeout_s=4 * (LEASE_S + GRACE_S) + 10)
    except TimeoutError:
        raise AssertionError(f"left behind: {extra()}") from None
    found = {path.name for path in storage.data_files()}
    assert {name.rpartition("/")[2] for name in wanted} <= found
    for path in storage.data_files():
        if path.name.endswith(also):
            info = decode_name("M00/00/00/" + path.name)
            data = path.read_bytes()
            assert len(data) == info.size
            assert zlib.crc32(data) == info.crc32


def object_names(session: BlockingSession, ino: int = names.ROOT_INO) -> set[str]:
    """File names of the objects of all inodes below a directory."""
    found: set[str] = set()
    for entry in session.read_dir(ino):
        if entry.attr.mode & 0o170000 == 0o040000:
            found |= object_names(session, entry.attr.ino)
        elif entry.attr.file_id:
            found.add(entry.attr.file_id)
    return found


# --- the storage dies ---------------------------------------------------------------------------


def test_kill_under_load_loses_nothing_acknowledged(short: Cluster, long_run: bool) -> None:
    storage = short.storage()
    address = (storage.address, storage.port)
    seed = random.SystemRandom().randrange(10**6) if long_run else 1
    print(f"seed {seed}")
    draw = random.Random(seed)
    workers = [
        TreeWorker(address, b"worker%d" % number, seed + number, retry=number != 0)
        for number in range(3)
    ]
    plain = PlainLoad(short, seed)
    with in_threads(plain.run, *(worker.run for worker in workers)):
        for _ in range(60 if long_run else 6):
            time.sleep(draw.uniform(0.05, 0.7))
            storage.kill()
            storage.start()
            # So that each round has work in it, and not only starting.
            for worker in workers:
                wait_for_growth(worker, "acknowledged", 4)
        for worker in workers:
            wait_for_growth(worker, "acknowledged", max(0, 101 - worker.acknowledged))
    short.wait_active()
    for worker in workers:
        worker.check()
        worker.session.sock.close()
        assert worker.breaks >= 3, "the load met the kills"
        assert worker.acknowledged > 100
    plain.check()
    storage.kill()
    storage.start()
    short.wait_active()
    for worker in workers:
        worker.check()
    plain.check()
    with BlockingSession(address) as session:
        wanted = object_names(session)
    wanted |= {name.split("/", 1)[1] for name in plain.files}
    check_disk(storage, wanted, also=".pln")


def test_pipelined_changes_are_done_in_order_or_not_at_all(short: Cluster) -> None:
    """Many changes in flight at a kill: what is there afterwards, a retry completes once."""
    storage = short.storage()
    address = (storage.address, storage.port)
    session = BlockingSession(address)
    directory = session.mkdir(names.ROOT_INO, b"many").ino
    count = 3000
    done: dict[bytes, int] = {}

    def take(result: tuple[int, names.Request, object]) -> None:
        _, request, answer = result
        assert isinstance(request, names.Create)
        assert isinstance(answer, names.Attr), answer
        done[request.name] = answer.ino

    now = time.time_ns()
    for number in range(count):
        session.send(names.Create(directory, b"f%05d" % number, 0o100644, 0, 0, now))
    for _ in range(count // 4):
        take(session.receive())
    storage.kill()
    acknowledged = dict(done)
    # What the kernel still holds of answers has been sent, so it counts.
    try:
        while True:
            take(session.receive())
    except BROKEN:
        acknowledged = dict(done)
    storage.start()
    with BlockingSession(address) as other:
        shown = {entry.name: entry.attr.ino for entry in other.read_dir(directory)}
    assert acknowledged.items() <= shown.items()
    connect(address, old=session)
    while session.waiting:
        take(session.receive())
    with session, BlockingSession(address) as other:
        assert {e.name: e.attr.ino for e in other.read_dir(directory)} == done
        assert len(done) == count
        assert shown.items() <= done.items(), "a retry did not do it twice"


def test_large_content_survives_a_kill(short: Cluster) -> None:
    storage = short.storage()
    address = (storage.address, storage.port)
    data = random.Random(1).randbytes(5_000_000)
    session = BlockingSession(address)
    file = session.create(names.ROOT_INO, b"large.bin")
    made = make_pending(session, file.ino, data)
    attr = name_pending(session, file.ino, made, len(data))
    assert attr.size == len(data)
    writable = session.call(names.MakeWritable(file.ino), names.Attr)
    storage.kill()
    storage.start()
    short.wait_active()
    connect(address, old=session)
    again = session.lookup(names.ROOT_INO, b"large.bin")
    assert (again.ino, again.size) == (file.ino, len(data))
    assert again.file_id == writable.file_id
    session.sock.close()
    with short.client() as client:
        assert client.download(f"group1/{again.file_id}") == data


# --- a mount dies -------------------------------------------------------------------------------


def test_dead_session_leaks_nothing_and_touches_no_client(short: Cluster) -> None:
    """A mount that dies between upload and naming, beside all that FastDFS clients keep."""
    storage = short.storage()
    address = (storage.address, storage.port)
    with short.client() as client:
        kept = {client.upload(b"plain", "txt"): b"plain"}
        appender = client.upload(b"begin", "log", appender=True)
        client.append(appender, b" and more")
        kept[appender] = b"begin and more"
        client.set_metadata(next(iter(kept)), {"width": "1024"})
        session = BlockingSession(address)
        named = session.create(names.ROOT_INO, b"named.jpg")
        named = session.store(named.ino, b"named content")
        file = session.create(names.ROOT_INO, b"never finished")
        made = make_pending(session, file.ino, b"x" * 2_000_000)
        empty = session.call(names.NewObject(file.ino), names.ObjectMade)
        assert storage.path_of(made.file_id).stat().st_size == 2_000_000
        assert storage.path_of(empty.file_id).exists()
        # Unlinked but held open when the mount dies.
        held = session.store(session.create(names.ROOT_INO, b"held").ino, b"held content")
        session.call(names.Holds([held.ino], []), names.Done)
        session.remove(names.ROOT_INO, b"held")
        session.sock.close()
        check_disk(storage, {named.file_id, *(name.split("/", 1)[1] for name in kept)})
        for file_id, data in kept.items():
            assert client.download(file_id) == data
        assert client.get_metadata(next(iter(kept))) == {"width": "1024"}
        with BlockingSession(address) as other:
            assert other.read(named.ino) == b"named content"
            assert other.lookup(names.ROOT_INO, b"never finished").size == 0
            assert status_of(lambda: other.call(names.GetAttr(held.ino), names.Attr)) != 0
            request = names.NameObject(file.ino, made.file_id, 2_000_000, time.time_ns())
            assert status_of(lambda: other.call(request, names.Attr)) == errno.ESTALE


def test_live_session_keeps_its_pending_and_held_objects(short: Cluster) -> None:
    storage = short.storage()
    address = (storage.address, storage.port)
    with BlockingSession(address) as session:
        file = session.create(names.ROOT_INO, b"slow upload")
        made = make_pending(session, file.ino, b"y" * 1_500_000)
        held = session.store(session.create(names.ROOT_INO, b"held").ino, b"held content")
        session.call(names.Holds([held.ino], []), names.Done)
        session.remove(names.ROOT_INO, b"held")
        deadline = time.monotonic() + LEASE_S + GRACE_S + 2
        while time.monotonic() < deadline:
            session.call(names.KeepAlive(), names.Done)
            time.sleep(LEASE_S / 4)
        assert session.read(held.ino) == b"held content"
        attr = name_pending(session, file.ino, made, 1_500_000)
        assert storage.path_of(attr.file_id).read_bytes() == b"y" * 1_500_000
        session.call(names.Holds([], [held.ino]), names.Done)
        while base_names(storage) != {attr.file_id.rpartition("/")[2]}:
            session.call(names.KeepAlive(), names.Done)
            time.sleep(LEASE_S / 4)
            assert time.monotonic() < deadline + 20, f"left behind: {base_names(storage)}"


def base_names(storage: Storage) -> set[str]:
    return {base_name(path) for path in storage.data_files()}


def test_pending_objects_are_collected_although_the_storage_died_too(short: Cluster) -> None:
    storage = short.storage()
    session = BlockingSession((storage.address, storage.port))
    file = session.create(names.ROOT_INO, b"file")
    make_pending(session, file.ino, b"z" * 1_200_000)
    assert len(storage.data_files()) == 1
    storage.kill()
    session.sock.close()
    storage.start()
    check_disk(storage, set())


def test_closed_session_gives_up_its_objects(short: Cluster) -> None:
    storage = short.storage()
    with BlockingSession((storage.address, storage.port)) as session:
        file = session.create(names.ROOT_INO, b"file")
        make_pending(session, file.ino, b"z" * 1_200_000)
        session.call(names.CloseSession(), names.Done)
        assert status_of(lambda: session.take_up()) == names.SESSION_ENDED
    check_disk(storage, set())


def test_killed_mount_leaks_nothing(fuse: None, short: Cluster, tmp_path: Path) -> None:
    storage = short.storage()
    mount = short.mount(tmp_path / "mnt")
    mount.mount()
    volume = mount.path / "group1"
    (volume / "kept.txt").write_bytes(b"kept")
    with short.client() as client:
        plain = client.upload(b"plain", "txt")
    fd = os.open(volume / "large.bin", os.O_WRONLY | os.O_CREAT)
    for _ in range(24):
        os.write(fd, b"w" * (1 << 20))
    # The mount streams a large file while it is written: something is on the storage by now.
    wait_until(lambda: len(storage.data_files()) > 2, "the upload to begin")
    mount.kill()
    with pytest.raises(OSError, match=r"not connected|aborted"):
        os.write(fd, b"x")
    with pytest.raises(OSError, match=r"not connected|aborted"):
        os.close(fd)
    mount.cleanup()
    with short.mount(tmp_path / "second") as second:
        volume = second.path / "group1"
        assert sorted(os.listdir(volume)) == ["M00", "kept.txt", "large.bin"]
        assert (volume / "large.bin").stat().st_size == 0
        kept = os.getxattr(volume / "kept.txt", "user.fdfs.file_id").decode()
        check_disk(storage, {name.split("/", 1)[1] for name in (kept, plain)})
        assert (volume / "kept.txt").read_bytes() == b"kept"
        assert (volume / plain.split("/", 1)[1]).read_bytes() == b"plain"


# --- mounts live through it ---------------------------------------------------------------------


def test_mount_survives_kills_of_the_storage(
    fuse: None, short: Cluster, tmp_path: Path, long_run: bool
) -> None:
    storage = short.storage()
    with short.mount(tmp_path / "mnt") as mount:
        writers = [MountWriter(mount.path / f"group1/writer{number}", number) for number in (0, 1)]
        try:
            draw = random.Random(1)
            for _ in range(20 if long_run else 4):
                time.sleep(draw.uniform(0.1, 0.6))
                storage.kill()
                storage.start()
                for writer in writers:
                    wait_for_growth(writer, "count", 6)
        finally:
            for writer in writers:
                writer.kill()
        mount.remount()
        for writer in writers:
            assert writer.count > 20
            writer.check()


def test_open_files_survive_a_restart_of_the_storage(
    fuse: None, short: Cluster, tmp_path: Path
) -> None:
    storage = short.storage()
    data = random.Random(2).randbytes(3_000_000)
    with short.mount(tmp_path / "mnt") as mount:
        path = mount.path / "group1" / "file"
        path.write_bytes(data)
        unlinked = mount.path / "group1" / "unlinked"
        unlinked.write_bytes(b"u" * 5000)
        with path.open("r+b", buffering=0) as file, unlinked.open("rb", buffering=0) as gone:
            unlinked.unlink()
            os.pread(file.fileno(), 10, 0)
            assert storage.terminate() == 0
            storage.start()
            assert os.pread(file.fileno(), 100_000, 2_000_000) == data[2_000_000:2_100_000]
            os.pwrite(file.fileno(), b"changed", 1_000_000)
            os.fsync(file.fileno())
            # Longer than lease and grace: the mount has told again what it holds.
            time.sleep(LEASE_S + GRACE_S + 1)
            assert gone.read() == b"u" * 5000
        expected = data[:1_000_000] + b"changed" + data[1_000_007:]
        mount.remount()
        assert path.read_bytes() == expected


# --- the tracker --------------------------------------------------------------------------------


def test_storage_joins_again_when_the_tracker_comes_back(short: Cluster) -> None:
    with short.client() as client:
        file_id = client.upload(b"before", "txt")
    for stop in (short.tracker.kill, short.tracker.terminate):
        stop()
        with BlockingSession((short.storage().address, short.storage().port)) as session:
            # Work on names needs no tracker.
            name = b"without tracker %d" % time.time_ns()
            session.store(session.create(names.ROOT_INO, name).ino, b"content")
        short.tracker.start()
        short.wait_active()
        with short.client() as client:
            assert client.download(file_id) == b"before"
            assert client.download(client.upload(b"after")) == b"after"


def test_restarted_tracker_remembers_the_cluster(tmp_path: Path) -> None:
    with Cluster(tmp_path / "cluster", groups=("group1", "group2")) as cluster:
        for storage in cluster.storages:
            storage.terminate()
        wait_until(lambda: 7 not in cluster.states().values(), "the storages to be OFFLINE")
        before = cluster.states()
        for stop in (cluster.tracker.terminate, cluster.tracker.kill):
            stop()
            cluster.tracker.start()
            assert cluster.states().keys() == before.keys()
        with cluster.client() as client, pytest.raises(PlainError) as refused:
            client.upload(b"nobody there")
        assert refused.value.status == errno.ENOENT
        for storage in cluster.storages:
            storage.start()
        cluster.wait_active()


def test_mount_works_on_while_the_tracker_is_away(
    fuse: None, short: Cluster, tmp_path: Path
) -> None:
    with short.mount(tmp_path / "mnt") as mount:
        volume = mount.path / "group1"
        (volume / "before").write_bytes(b"1")
        short.tracker.kill()
        (volume / "during").write_bytes(b"2")
        assert (volume / "before").read_bytes() == b"1"
        assert sorted(os.listdir(volume)) == ["before", "during"]
        short.tracker.start()
        short.wait_active()
        assert (volume / "during").read_bytes() == b"2"


# --- a clean stop -------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_daemons_stop_cleanly_under_load(short: Cluster, number: signal.Signals) -> None:
    storage, tracker = short.storage(), short.tracker
    worker = TreeWorker((storage.address, storage.port), b"worker", 1)
    plain = PlainLoad(short, 1)
    idle = [daemon.connect() for daemon in (storage, tracker) for _ in range(5)]
    try:
        with in_threads(plain.run, worker.run):
            wait_until(lambda: worker.acknowledged > 20 and len(plain.files) > 5, "load")
            for daemon in (storage, tracker):
                daemon.signal(number)
                assert daemon.wait(10) == 0, daemon.log_tail()
            tracker.start()
            storage.start()
            wait_for_growth(worker, "acknowledged", 20)
    finally:
        for sock in idle:
            sock.close()
    short.wait_active()
    worker.check()
    worker.session.sock.close()
    plain.check()


def test_killed_mid_upload_leaves_nothing(short: Cluster) -> None:
    """Half an upload, then the client or the storage is gone."""
    storage = short.storage()
    head = bytes.fromhex("0000000000a0000f0b00ff0000000000a00000") + b"pln\0\0\0"
    for end in ("client", "storage"):
        sock = socket.create_connection((storage.address, storage.port))
        sock.sendall(head + b"x" * 3_000_000)
        if end == "storage":
            storage.kill()
            storage.start()
        sock.close()
        wait_until(lambda: storage.data_files() == [], "the half upload to be removed")
    view = query_view((storage.address, storage.port))
    assert (view.number, view.members) == (1, [view.primary])
