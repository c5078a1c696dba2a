"""Two mounts of one volume, their kernels included: nobody sees what is no longer so."""

from __future__ import annotations

import errno
import os
import random
import stat
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import partial

import pytest
import trio
import trio.testing
from msgspec.structs import replace

from fdfsfuse.client.names.lease import Lease
from fdfsfuse.errors import StatusError, TreeError
from fdfsfuse.proto import names
from fdfsfuse.vfs import ownfiles, recalls
from fdfsfuse.vfs.ahead import Ahead, Wanted
from fdfsfuse.vfs.directory import MISSING
from fdfsfuse.vfs.memory import Memory
from fdfsfuse.vfs.options import VfsOptions
from fdfsfuse.vfs.vfs import Vfs
from fdfsfuse.vfs.volume import Volume
from tests.common.fake_sessions import KernelModel, Machine, SessionBackend, SharedVolume
from tests.common.waiting import wait_for
from tests.vfs.common import OWNER

NAMES = (b"a", b"b", b"c", b"d")
REFUSED = (errno.ENOENT, errno.EEXIST, errno.ESTALE)


class Sessions:
    """A `Cluster` of volumes with a session each."""

    def __init__(self, *sessions: SessionBackend) -> None:
        self._sessions = {session.group: session for session in sessions}

    async def volumes(self) -> list[str]:
        return list(self._sessions)

    def backend(self, group: str) -> SessionBackend:
        return self._sessions[group]


class MappingKernel(KernelModel):
    """``changed`` writes a page that a program has changed through a mapping, then ``written``."""

    def __init__(self) -> None:
        super().__init__()
        self.changed: Callable[[], Awaitable[None]] | None = None
        self.written = trio.Event()

    def forget_pages(self, number: int) -> None:
        changed, self.changed = self.changed, None
        if changed is not None:
            trio.from_thread.run(changed)
            trio.from_thread.run_sync(self.written.set)
        super().forget_pages(number)


@asynccontextmanager
async def machines(
    rng: random.Random, make_kernel: Callable[[], KernelModel] = KernelModel
) -> AsyncIterator[tuple[SharedVolume, list[Machine]]]:
    async with trio.open_nursery() as nursery:
        shared = SharedVolume(rng, nursery)
        found = []
        for _ in range(2):
            kernel = make_kernel()
            options = VfsOptions(uid=7, gid=8, cached_entries=rng.choice((5, 1000)))
            vfs = Vfs(options, Sessions(SessionBackend(shared)), kernel)
            await nursery.start(vfs.run)
            found.append(Machine(vfs, kernel))
        yield shared, found
        nursery.cancel_scope.cancel()


async def directories(machine: Machine, wanted: Sequence[bytes] = (b"one", b"two")) -> list[int]:
    """The numbers of directories, which are made if need be; the same on each machine."""
    vfs = machine.vfs
    root = (await vfs.tree.lookup(1, b"vol")).number
    found = []
    for name in wanted:
        number = await machine.lookup(root, name)
        if not number:
            entry = await vfs.tree.create(root, name, 0o040755, OWNER)
            number = vfs.remember(entry).number
        found.append(number)
    return found


async def work(machine: Machine, places: Sequence[int], rng: random.Random, steps: int) -> None:
    """Random system calls; what another machine did in between may refuse them."""
    for _ in range(steps):
        place, name = rng.choice(places), rng.choice(NAMES)
        try:
            await step(machine, place, name, places, rng)
        except (TreeError, StatusError) as exc:
            if exc.errno not in REFUSED:
                raise


async def step(
    machine: Machine, place: int, name: bytes, places: Sequence[int], rng: random.Random
) -> None:
    kind = rng.randrange(9)
    if kind <= 1:
        await machine.write(place, name, b"%d" % rng.randrange(10**6))
    elif kind == 2:
        await machine.unlink(place, name)
    elif kind == 3:
        await machine.rename(place, name, rng.choice(places), rng.choice(NAMES))
    elif kind == 4:
        await machine.link(place, name, rng.choice(NAMES))
    elif kind == 5:
        await machine.list(place)
    else:
        number = await machine.lookup(place, name)
        if not number:
            return
        if kind == 6:
            await machine.chmod(number, rng.randrange(0o1000))
        elif kind == 7:
            await machine.stat(number)
        else:
            await machine.read(number)


async def check(shared: SharedVolume, machine: Machine, places: Sequence[int]) -> None:
    """All that the machine shows is the state of the storage."""
    storage = shared.storage
    for place in places:
        ino = machine.vfs.context.numbers.inode_and_object(place)[0]
        entries = storage.directories[ino].entries
        attr = await machine.stat(place)
        assert attr == storage.attrs[ino]
        for name in NAMES:
            number = await machine.lookup(place, name)
            if name not in entries:
                assert number == 0, name
                continue
            expected = storage.attrs[entries[name][1]]
            assert number & 0xFFFFFFFF == expected.ino, name
            assert await machine.stat(number) == expected
            if not stat.S_ISREG(expected.mode):
                continue
            content = bytes(storage.objects[expected.file_id]) if expected.file_id else b""
            assert await machine.read(number) == content
        assert await machine.list(place) == set(entries)


@pytest.fixture(autouse=True)
def grants_are_asked_for_again_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else these tests are mostly over before a mount asks for a grant that it was refused."""
    monkeypatch.setattr(ownfiles, "_REFUSED_S", 0.0)


@pytest.fixture(params=["", "ahead"])
def ahead(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with all that can be asked for ahead of need."""
    if request.param:
        wanted = [Wanted(2, False, 0), Wanted(3, True, 0)]
        ends: dict[int, int] = {}

        def missed(self: Ahead, directory: int, ino: int) -> Wanted:
            return wanted[0]._replace(after=ino)

        def onward(self: Ahead, directory: int) -> Wanted:
            end = ends.pop(directory, 0)
            return wanted[0]._replace(after=end) if end else Wanted(0, False, 0)

        def came(self: Ahead, directory: int, brought: set[int], end: int = 0) -> None:
            wanted.reverse()
            ends[directory] = end

        monkeypatch.setattr(Ahead, "missed", missed)
        monkeypatch.setattr(Ahead, "onward", onward)
        monkeypatch.setattr(Ahead, "came", came)


@pytest.mark.usefixtures("ahead")
@pytest.mark.parametrize("seed", range(6))
async def test_a_change_is_seen_at_once(seed: int) -> None:
    rng = random.Random(seed)
    async with machines(rng) as (shared, pair):
        places = await directories(pair[0])
        assert await directories(pair[1]) == places
        for _ in range(60):
            await work(rng.choice(pair), places, rng, 1)
            for machine in pair:
                await check(shared, machine, places)


@pytest.mark.usefixtures("ahead")
@pytest.mark.parametrize("seed", range(12))
async def test_both_change_the_same_at_once(seed: int) -> None:
    rng = random.Random(seed)
    async with machines(rng) as (shared, pair):
        places = await directories(pair[0])
        await directories(pair[1])
        for _ in range(8):
            with trio.fail_after(60):
                async with trio.open_nursery() as nursery:
                    for machine in (*pair, *pair):
                        nursery.start_soon(work, machine, places, rng, 6)
            await wait_for(lambda: all(machine.is_idle for machine in pair))
            for machine in pair:
                await check(shared, machine, places)


@pytest.mark.parametrize("seed", range(12))
async def test_files_made_without_asking_are_seen_at_once(seed: int) -> None:
    """What an exclusive create() has made is found by whoever looks later, and made once."""
    rng = random.Random(seed)
    made: dict[tuple[int, bytes], int] = {}
    others_turn = trio.Lock()

    async def make(machine: Machine, place: int, name: bytes) -> None:
        try:
            handle = await machine.make(place, name)
        except StatusError as exc:
            if exc.errno != errno.EEXIST:
                raise
            return
        if handle is not None:
            number = machine.vfs.files._get(handle).state.number
            assert made.setdefault((place, name), number) == number
            for _ in range(rng.randrange(5)):
                await shared.delay()
            await machine.vfs.files.write(handle, 0, b"%d" % number)
            await shared.delay()
            await machine._close(handle)

    async def look(machine: Machine, place: int, name: bytes) -> None:
        # While it has a request in flight there it may show what was before.
        await wait_for(lambda: machine.is_idle)
        expected = {n for p, n in made if p == place}
        if rng.randrange(2):
            assert await machine.list(place) >= expected
        else:
            known = made.get((place, name), 0)
            number = await machine.lookup(place, name)
            # Or it was made after the storage had answered.
            assert number == made.get((place, name), number) or number == known == 0

    async def act(directory: bytes, place: int, maker: Machine, other: Machine) -> None:
        for _ in range(10):
            name = b"%d" % rng.randrange(20)
            if rng.randrange(5):
                await make(maker, place, name)
                continue
            async with others_turn:
                assert await directories(other, [directory]) == [place]
                await (look if rng.randrange(3) else make)(other, place, name)

    async with machines(rng) as (shared, pair):
        for turn in range(6):
            maker, other = pair if rng.randrange(2) else reversed(pair)
            directory = b"new%d" % turn
            (place,) = await directories(maker, [directory])
            await make(maker, place, b"before anybody looks")
            with trio.fail_after(60):
                async with trio.open_nursery() as nursery:
                    for _ in range(3):
                        nursery.start_soon(act, directory, place, maker, other)
            await wait_for(lambda: all(machine.is_idle for machine in pair))
            assert {name for where, name in made if where == place} == await other.list(place)
            for where, name in made:
                if where == place:
                    number = await other.lookup(place, name)
                    assert await other.read(number) == b"%d" % made[place, name]
        assert sum(session.requests["CreateFile"] for session in shared.sessions) >= 6


@pytest.mark.parametrize("call", ["unlink", "rename"])
async def test_a_name_had_another_inode_than_the_kernel_knew(call: str) -> None:
    """Of that inode, which has lost this name, it keeps no attributes either."""
    async with machines(random.Random(1)) as (shared, pair):
        places = await directories(pair[0], [b"one"])
        (place,) = await directories(pair[1], [b"one"])
        for name in (b"a", b"b", b"c"):
            await pair[0].write(place, name, name)
        await pair[0].link(place, b"b", b"d")
        volume, kernel = pair[1].vfs.volumes.by_name[b"vol"], pair[1].kernel
        ino = pair[1].vfs.context.numbers.inode_and_object(place)[0]
        known, linked, moved = [await pair[1].lookup(place, name) for name in (b"a", b"b", b"c")]
        async with kernel.locks[place]:
            with volume.memory.flights.locked(ino):
                await pair[0].rename(place, b"d", place, b"a")
            assert (await pair[1].stat(linked)).nlink == 2
            if call == "unlink":
                await pair[1].vfs.tree.remove(place, b"a", directory=False)
            else:
                await pair[1].vfs.tree.rename(place, b"c", place, b"a", 0)
                kernel.names.pop((place, b"c"))
            kernel.names.pop((place, b"a"), None)
            for changed in (place, known, moved):
                kernel.attrs.pop(changed, None)
        await wait_for(lambda: all(machine.is_idle for machine in pair))
        assert (await pair[1].stat(linked)).nlink == 1
        for machine in pair:
            await check(shared, machine, places)


async def test_mappings_and_fsync_of_both_do_not_wait_for_each_other() -> None:
    """Forgetting pages makes the kernel WRITE, which waits for an fsync, and that for the other."""
    async with machines(random.Random(1), MappingKernel) as (_, pair):
        places = await directories(pair[0])
        await directories(pair[1])
        await pair[0].write(places[0], b"a", bytes(20))
        handles = []
        for mine, machine in enumerate(pair):
            files, kernel = machine.vfs.files, machine.kernel
            handle = (await files.open(await machine.lookup(places[0], b"a"), os.O_RDWR)).handle
            await files.write(handle, mine, b"w")
            assert isinstance(kernel, MappingKernel)
            kernel.changed = partial(files.write, handle, 10 + mine, b"m")
            handles.append(handle)
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                for machine, handle in zip(pair, handles, strict=True):
                    nursery.start_soon(machine.vfs.files.sync, handle)
            for machine, handle in zip(pair, handles, strict=True):
                assert isinstance(machine.kernel, MappingKernel)
                await machine.kernel.written.wait()
                await machine.vfs.files.sync(handle)
        wanted = b"ww" + bytes(8) + b"mm" + bytes(8)
        for machine, handle in zip(pair, handles, strict=True):
            assert bytes(await machine.vfs.files.read(handle, 0, 99)) == wanted
            await machine.vfs.files.release(handle)


class SlowKernel(KernelModel):
    """Forgets pages, and in a thread attributes, when it is told to ``go_on``."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = trio.Event()
        self.go_on = threading.Event()

    def forget_attributes(self, number: int) -> None:
        if threading.current_thread() is not threading.main_thread():
            self._wait()
        super().forget_attributes(number)

    def forget_pages(self, number: int) -> None:
        self._wait()
        super().forget_pages(number)

    def _wait(self) -> None:
        trio.from_thread.run_sync(self.begun.set)
        self.go_on.wait()


@contextmanager
def unblocked(event: threading.Event) -> Iterator[None]:
    """A thread that waits for *event* must not outlive a test that fails."""
    try:
        yield
    finally:
        event.set()


@asynccontextmanager
async def slow_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[tuple[Volume, SlowKernel, names.Recall, list[int]]]:
    """A volume with a file that is known, not open, and a request in flight; a recall of nothing;
    the numbers of recalls that were confirmed."""
    confirmed: list[int] = []
    async with machines(random.Random(1), SlowKernel) as (shared, pair):
        kernel = pair[0].kernel
        assert isinstance(kernel, SlowKernel)
        kernel.go_on.set()
        (place,) = await directories(pair[0], [b"one"])
        await pair[0].write(place, b"a", bytes(20))
        volume = pair[0].vfs.volumes.by_name[b"vol"]
        monkeypatch.setattr(
            volume.backend, "recalled", lambda number, kept: confirmed.append(number)
        )
        ticket = volume.enter()
        kernel.begun, kernel.go_on = trio.Event(), threading.Event()
        nothing = shared.storage.recall_since(shared.storage.snapshot())
        with trio.fail_after(30), unblocked(kernel.go_on):
            yield volume, kernel, nothing, confirmed
        volume.leave(ticket)


async def confirmed_after(kernel: SlowKernel, confirmed: list[int], number: int) -> None:
    """The recall of this number is confirmed when the kernel has forgotten, and not before."""
    await kernel.begun.wait()
    await trio.testing.wait_all_tasks_blocked(0.01)
    assert not confirmed
    kernel.go_on.set()
    await wait_for(lambda: confirmed == [number])


async def test_pages_of_a_file_that_is_not_open_are_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nobody has locked them, so it only takes the kernel a while."""
    monkeypatch.setattr(recalls, "_PAGES_LOCKED_S", 0.0)
    monkeypatch.setattr(recalls, "_LOCKED_S", 60.0)
    async with slow_machine(monkeypatch) as (volume, kernel, nothing, confirmed):
        file = volume.memory.lookup(*volume.memory.names_in_use()[-1])
        assert file
        volume.recalls.recalled(replace(nothing, attrs=[file], content=[file]))
        await confirmed_after(kernel, confirmed, nothing.number)


async def test_names_are_forgotten_although_pages_are_locked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with slow_machine(monkeypatch) as (volume, kernel, nothing, confirmed):
        parent, name = volume.memory.names_in_use()[-1]
        file = volume.memory.lookup(parent, name)
        assert file
        assert name in {known for _, known in kernel.names}
        volume.recalls.recalled(
            replace(nothing, attrs=[parent, file], content=[file], names=[(parent, name)])
        )
        await wait_for(lambda: name not in {known for _, known in kernel.names})
        await wait_for(lambda: confirmed == [nothing.number])
        assert kernel.begun.is_set()


async def test_a_recall_of_everything_waits_for_the_kernel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(recalls, "_LOCKED_S", 60.0)
    async with slow_machine(monkeypatch) as (volume, kernel, nothing, confirmed):
        volume.recalls.recalled(replace(nothing, everything=True))
        await confirmed_after(kernel, confirmed, nothing.number)


async def test_a_change_returns_when_pages_of_a_busy_file_are_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of two reads at once the kernel may answer one from pages that it drops for the other."""
    monkeypatch.setattr(recalls, "_LOCKED_S", 60.0)
    monkeypatch.setattr(recalls, "_PAGES_LOCKED_S", 60.0)
    async with machines(random.Random(1), SlowKernel) as (_, pair):
        places = await directories(pair[0])
        await directories(pair[1])
        for machine in pair:
            assert isinstance(machine.kernel, SlowKernel)
            machine.kernel.go_on.set()
        await pair[0].write(places[0], b"a", bytes(20))
        handles = []
        for machine in pair:
            number = await machine.lookup(places[0], b"a")
            handles.append((await machine.vfs.files.open(number, os.O_RDWR)).handle)
        await wait_for(lambda: all(machine.is_idle for machine in pair))
        one, two = (machine.vfs.files for machine in pair)
        kernel = pair[1].kernel
        assert isinstance(kernel, SlowKernel)
        kernel.go_on.clear()
        kernel.begun = trio.Event()
        await one.write(handles[0], 0, b"new")
        state = pair[1].vfs.context.states[await pair[1].lookup(places[0], b"a")]
        synced = trio.Event()

        async def sync() -> None:
            await one.sync(handles[0])
            synced.set()

        with trio.fail_after(30), unblocked(kernel.go_on):
            async with trio.open_nursery() as nursery:
                async with state.lock:
                    nursery.start_soon(two.write, handles[1], 10, b"w")
                    await wait_for(lambda: state.writes == 1)
                    nursery.start_soon(sync)
                    await kernel.begun.wait()
                await wait_for(lambda: state.writes == 0)
                assert not pair[1].is_idle
                assert not synced.is_set()
                kernel.go_on.set()
                await synced.wait()
        for handle, machine in zip(handles, pair, strict=True):
            await machine.vfs.files.release(handle)


async def test_renames_across_directories_do_not_wait_for_each_other() -> None:
    """Each has locked one directory and waits for another, in which a change is in flight."""
    async with machines(random.Random(1)) as (shared, pair):
        places = await directories(pair[0])
        await directories(pair[1])
        for machine in pair:
            for place in places:
                await machine.list(place)
        for place in places:
            await pair[0].create(place, b"old", stat.S_IFDIR | 0o755)
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                for machine, place in zip(pair, places, strict=True):
                    nursery.start_soon(machine.create, place, b"made", stat.S_IFDIR | 0o755)
                await trio.lowlevel.checkpoint()
                for machine, (old, new) in zip(pair, (places, places[::-1]), strict=True):
                    nursery.start_soon(machine.rename, old, b"old", new, b"new")
        await wait_for(lambda: all(machine.is_idle for machine in pair))
        for machine in pair:
            for place in places:
                assert await machine.list(place) == {b"made", b"new"}
            await check(shared, machine, places)


async def test_renames_across_volumes_do_not_wait_for_each_other() -> None:
    """They are refused, but only after the kernel has locked both directories."""

    async def rename(machine: Machine, old: int, new: int) -> None:
        with pytest.raises(TreeError) as refused:
            await machine.rename(old, b"old", new, b"new")
        assert refused.value.errno == errno.EXDEV

    async with trio.open_nursery() as nursery:
        shared = [SharedVolume(random.Random(1), nursery, name) for name in ("one", "two")]
        pair = []
        for _ in range(2):
            kernel = KernelModel()
            sessions = Sessions(*map(SessionBackend, shared))
            vfs = Vfs(VfsOptions(uid=7, gid=8), sessions, kernel)
            await nursery.start(vfs.run)
            pair.append(Machine(vfs, kernel))
        for machine in pair:
            places = [await machine.lookup(1, name) for name in (b"one", b"two")]
        for place in places:
            await pair[0].create(place, b"old", stat.S_IFDIR | 0o755)
            for machine in pair:
                await machine.list(place)
        with trio.fail_after(30):
            async with trio.open_nursery() as working:
                for machine, place in zip(pair, places, strict=True):
                    working.start_soon(machine.create, place, b"made", stat.S_IFDIR | 0o755)
                await trio.lowlevel.checkpoint()
                for machine, (old, new) in zip(pair, (places, places[::-1]), strict=True):
                    working.start_soon(rename, machine, old, new)
        await wait_for(lambda: all(machine.is_idle for machine in pair))
        for machine in pair:
            for place in places:
                assert await machine.list(place) == {b"made", b"old"}
        nursery.cancel_scope.cancel()


async def test_a_lost_lease_leaves_nothing() -> None:
    async with machines(random.Random(1)) as (shared, pair):
        places = await directories(pair[0])
        await directories(pair[1])
        one, two = pair
        await one.write(places[0], b"a", b"old")
        await check(shared, two, places)
        # The other one is not told, as when it was away for longer than its lease.
        session = shared.sessions[1]
        listener, session.listener = session.listener, None
        await one.write(places[0], b"a", b"new content")
        await one.chmod(await one.lookup(places[0], b"a"), 0o600)
        session.listener = listener
        assert listener is not None
        listener.lease_lost()
        # The kernel was told to rely on names for no longer than the lease.
        two.kernel.names.clear()
        await wait_for(lambda: not two.kernel.attrs)
        await check(shared, two, places)


async def test_nothing_is_relied_upon_behind_the_lease() -> None:
    async with machines(random.Random(1)) as (shared, pair):
        places = await directories(pair[0])
        await pair[0].write(places[0], b"a", b"data")
        shared.sessions[0].lease.end()
        pair[0].kernel.names.clear()
        pair[0].kernel.attrs.clear()
        number = await pair[0].lookup(places[0], b"a")
        await pair[0].stat(number)
        assert pair[0].kernel.names == {}
        assert pair[0].kernel.attrs == {}
        assert shared.sessions[0].requests.keys() >= {"Lookup", "GetAttr"}


def test_recalls_while_requests_never_cease_take_bounded_memory() -> None:
    lease = Lease()
    lease.renew(0.0, 10.0)
    memory = Memory(lambda: 0.0, lease, 1000)
    slow = names.GetAttr(5)
    began = memory.flights.begin(slow)
    for ino in range(10, 50_000):
        memory.recall([ino], [])
        quick = names.GetAttr(6)
        memory.flights.end(memory.flights.begin(quick))
        assert len(memory.flights._recalled) <= 10_001
    attr = names.Attr(5, 0o100644, 1, 0, 0, 0, 3, 1, 2, 3, 1)
    memory.learn(slow, attr, began)
    memory.flights.end(began)
    # It may be one that was recalled.
    assert memory.attr(5) is None


def test_a_directory_is_kept_while_the_kernel_relies_on_names_that_were_forgotten() -> None:
    lease = Lease()
    lease.renew(0.0, 10.0)
    memory = Memory(lambda: 0.0, lease, 2)

    def not_found(parent: int, name: bytes) -> None:
        request = names.Lookup(parent, name)
        began = memory.flights.begin(request)
        memory.refused(request, StatusError(errno.ENOENT), began)
        memory.flights.end(began)

    not_found(5, b"a")
    assert memory.give(5, b"a", MISSING)
    not_found(6, b"a")
    assert memory.lookup(5, b"a") is None
    not_found(5, b"b")
    assert memory.lookup(5, b"b") == MISSING
    assert memory.kept([5]) == [5]
