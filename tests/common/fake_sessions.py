"""Several mounts of one `FakeBackend`: sessions with recalls, and the caches of their kernels.

Everything that a storage sends to a session arrives in the order of sending, but late, and changes
are answered when all other sessions have confirmed what was recalled (as if they held everything).
Grants are given and recalled as a storage does it.
"""

from __future__ import annotations

import errno
import os
import random
import stat
from collections import defaultdict
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any

import outcome
import trio
from msgspec.structs import replace

from fdfsfuse.core.grants import Grants, Revocation
from fdfsfuse.core.holds import Holds
from fdfsfuse.errors import StatusError, TreeError
from fdfsfuse.proto import names
from fdfsfuse.proto.names import Attr
from fdfsfuse.vfs.backend import Listener
from fdfsfuse.vfs.context import Entry
from fdfsfuse.vfs.openfiles import Opened
from fdfsfuse.vfs.tree import Changes, Owner
from fdfsfuse.vfs.vfs import Vfs
from tests.common.fake_volume import FakeBackend

OWNER = Owner(1000, 1001)


class SharedVolume:
    """The storage. *rng* decides how late everything is."""

    def __init__(self, rng: random.Random, nursery: trio.Nursery, name: str = "vol") -> None:
        self.storage = FakeBackend(name)
        self.rng = rng
        self.nursery = nursery
        self.sessions: list[SessionBackend] = []
        self.holds = Holds(1_000_000)
        self.grants = Grants(100)
        self.revocations: dict[int, Revocation] = {}

    async def delay(self) -> None:
        for _ in range(self.rng.randrange(4)):
            await trio.lowlevel.checkpoint()


class SessionBackend(FakeBackend):
    """A `Backend` whose volume others change, too."""

    def __init__(self, shared: SharedVolume) -> None:
        storage = shared.storage
        super().__init__(storage.group)
        self.objects, self.attrs = storage.objects, storage.attrs
        self.pending, self.named = storage.pending, storage.named
        self.unconfirmed: dict[int, trio.Event] = {}
        self.unreleased: dict[int, set[int]] = {}
        self.number = len(shared.sessions) + 1
        self._shared = shared
        self._send, self._receive = trio.open_memory_channel[Any](1000)
        shared.sessions.append(self)

    async def run(self, listener: Listener) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._deliver, listener)
            await super().run(listener)
            nursery.cancel_scope.cancel()

    async def _deliver(self, listener: Listener) -> None:
        async for item in self._receive:
            await self._shared.delay()
            if isinstance(item, names.Recall):
                listener.recalled(item)
            else:
                event, result, answer = item
                result.append(answer)
                event.set()

    def recalled(self, number: int, kept: Sequence[int]) -> None:
        shared = self._shared
        for ino in self.unreleased.pop(number):
            if ino not in kept:
                shared.holds.release(ino, self.number)
        self.unconfirmed.pop(number).set()
        revocation = shared.revocations.pop(number, None)
        if revocation is not None:
            shared.grants.ended(revocation)
            for resume in revocation.resume:
                resume()

    async def _wait_for_grants(self, inos: set[int], *, known_only: bool) -> bool:
        """Whether it had to wait."""
        shared = self._shared
        waits, new = shared.grants.in_the_way(self.number, inos, known_only=known_only)
        for revocation in new:
            (holder,) = [s for s in shared.sessions if s.number == revocation.session]
            nothing = shared.storage.recall_since(shared.storage.snapshot())
            recall = replace(nothing, grants=revocation.inos)
            shared.revocations[recall.number] = revocation
            holder._recall(recall)
        if waits is None:
            return False
        over = trio.Event()
        waits.resume.append(over.set)
        await over.wait()
        return True

    def _recall(self, recall: names.Recall) -> trio.Event:
        event = self.unconfirmed[recall.number] = trio.Event()
        self.unreleased[recall.number] = set(recall.attrs)
        self._send.send_nowait(recall)
        return event

    def _execute(self, request: names.Request) -> Any:
        if isinstance(request, names.Grant):
            return self._grant(request)
        answer = self._shared.storage.execute(request)
        if isinstance(request, names.Create) and request.ino and stat.S_ISDIR(request.mode):
            self._shared.grants.made(request.ino, self.number)
        elif isinstance(request, names.Remove) and request.directory:
            self._shared.grants.removed(answer.ino)
        return answer

    def _grant(self, request: names.Grant) -> names.Done:
        shared = self._shared
        alone = not shared.holds.others(request.ino, self.number)
        if not alone or not shared.grants.grant(request.ino, self.number):
            raise StatusError(errno.EAGAIN)
        return names.Done()

    async def _carry_out(self, request: names.Request, timeout_s: float | None) -> Any:
        shared = self._shared
        await shared.delay()
        waiting: list[trio.Event] = []
        while True:
            asked = {getattr(request, key, 0) for key in ("ino", "parent", "new_parent")}
            if isinstance(request, names.CHANGES):
                known_only = isinstance(request, names.CreateFile)
                if await self._wait_for_grants(asked, known_only=known_only):
                    continue
            before = shared.storage.snapshot()
            answer = outcome.capture(self._execute, request)
            told = asked | _inos(answer.value if isinstance(answer, outcome.Value) else None)
            if isinstance(request, (*names.CHANGES, names.Grant)):
                break
            if not await self._wait_for_grants(told, known_only=False):
                break
        if not isinstance(request, names.Grant):
            shared.holds.add(told, self.number)
            for released in self.unreleased.values():
                released.difference_update(told)
        recall = shared.storage.recall_since(before)
        if recall.attrs:
            for other in shared.sessions:
                if isinstance(request, names.CreateFile) and other.number not in (
                    shared.holds.others(request.parent, self.number)
                ):
                    continue  # made under a grant: it has not heard of the directory
                if other is not self and other.listener is not None:
                    waiting.append(other._recall(recall))
        done, result = trio.Event(), list[outcome.Outcome[Any]]()
        shared.nursery.start_soon(self._answer, waiting, (done, result, answer))
        await done.wait()
        return result[0].unwrap()

    async def _answer(self, waiting: list[trio.Event], item: Any) -> None:
        for event in waiting:
            await event.wait()
        self._send.send_nowait(item)


def _inos(answer: Any) -> set[int]:
    """The inodes that an answer tells of."""
    if isinstance(answer, names.Listing):
        return {entry.attr.ino for entry in answer.entries}
    if isinstance(answer, names.Opened):
        return {answer.attr.ino, answer.parent, *(entry.attr.ino for entry in answer.following)}
    if isinstance(answer, names.Xattrs):
        return set(answer.following)
    return {answer.ino} if isinstance(answer, Attr) else set()


class KernelModel:
    """What the kernel caches of a mount, and the locks that it holds meanwhile.

    Only what counts for validity: a directory is locked while a request about its names is in
    flight, and forgetting a name has to wait for that. A rename locks its new directory, then the
    old one. The pages of a file are locked while they are read or written.
    """

    def __init__(self) -> None:
        self.names: dict[tuple[int, bytes], int] = {}
        self.attrs: dict[int, Attr] = {}
        self.pages: dict[int, bytes] = {}
        self.locks: defaultdict[int, trio.Lock] = defaultdict(trio.Lock)
        self.across = trio.Lock()
        self.busy = 0

    def store_pages(self, number: int, content: bytes, offset: int = 0) -> bool:
        assert not self.locks[number].locked()
        before = self.pages.get(number, b"")[:offset]
        if len(before) == offset:
            self.pages[number] = before + content
        return True

    def forget_attributes(self, number: int) -> None:
        self.attrs.pop(number, None)

    def forget_pages(self, number: int) -> None:
        self.attrs.pop(number, None)
        self.pages.pop(number, None)

    def forget_name(self, parent: int, name: bytes) -> None:
        self.busy += 1
        try:
            trio.from_thread.run(self._forget_name, parent, name)
        finally:
            self.busy -= 1

    async def _forget_name(self, parent: int, name: bytes) -> None:
        async with self.locks[parent]:
            self.names.pop((parent, name), None)
            self.attrs.pop(parent, None)

    def given(self, parent: int, name: bytes, entry: Entry) -> None:
        """The answer to a lookup."""
        if entry.entry_timeout_s > 0:
            self.names[parent, name] = entry.number
        else:
            self.names.pop((parent, name), None)
        self.attributes(entry)

    def attributes(self, entry: Entry) -> None:
        if entry.attr_timeout_s > 0:
            self.attrs[entry.number] = entry.attr
        else:
            self.attrs.pop(entry.number, None)


class Machine:
    """System calls on one mount, through the caches of its kernel."""

    def __init__(self, vfs: Vfs, kernel: KernelModel) -> None:
        self.vfs = vfs
        self.kernel = kernel

    @property
    def is_idle(self) -> bool:
        """Nothing is left to be forgotten."""
        for volume in self.vfs.volumes.by_name.values():
            assert isinstance(volume.backend, SessionBackend)
            if volume.backend.unconfirmed or volume.recalls.late:
                return False
        return not self.kernel.busy

    async def lookup(self, parent: int, name: bytes) -> int:
        """The number of a name; 0 when there is none."""
        async with self.kernel.locks[parent]:
            return await self._lookup(parent, name)

    async def _lookup(self, parent: int, name: bytes) -> int:
        known = self.kernel.names.get((parent, name))
        if known is not None:
            return known
        entry = await self.vfs.tree.find(parent, name)
        if not entry.number:
            if entry.entry_timeout_s > 0:
                self.kernel.names[parent, name] = 0
            return 0
        self.kernel.given(parent, name, self.vfs.remember(entry))
        return entry.number

    async def stat(self, number: int) -> Attr:
        known = self.kernel.attrs.get(number)
        if known is not None:
            return known
        entry = await self.vfs.tree.getattr(number)
        self.kernel.attributes(entry)
        return entry.attr

    async def read(self, number: int) -> bytes:
        opened = await self.vfs.files.open(number, os.O_RDONLY)
        if not opened.keep_cache:
            self.kernel.pages.pop(number, None)
        try:
            async with self.kernel.locks[number]:
                data = self.kernel.pages.get(number)
                if data is None:
                    data = bytes(await self.vfs.files.read(opened.handle, 0, 1 << 20))
                    self.kernel.pages[number] = data
                return data
        finally:
            await self._close(opened.handle)

    async def _close(self, handle: int) -> None:
        try:
            await self.vfs.files.flush(handle)
        finally:
            await self.vfs.files.release(handle)

    async def write(self, parent: int, name: bytes, data: bytes) -> None:
        """open(O_CREAT | O_TRUNC), write(), close()."""
        opened: Opened | None = None
        async with self.kernel.locks[parent]:
            number = await self._lookup(parent, name)
            if not number:
                flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC
                opened, entry = await self.vfs.files.create(parent, name, 0o644, flags, OWNER)
                self.kernel.given(parent, name, self.vfs.remember(entry))
                self.kernel.attrs.pop(parent, None)
                number = entry.number
        if opened is None:
            opened = await self.vfs.files.open(number, os.O_RDWR | os.O_TRUNC)
        try:
            async with self.kernel.locks[number]:
                self.kernel.pages.pop(number, None)
                await self.vfs.files.write(opened.handle, 0, data)
            self.kernel.attrs.pop(number, None)
        finally:
            await self._close(opened.handle)
            self.kernel.attrs.pop(number, None)

    async def make(self, parent: int, name: bytes) -> int | None:
        """open(O_CREAT | O_EXCL): the handle; None when there is such a name."""
        async with self.kernel.locks[parent]:
            if await self._lookup(parent, name):
                return None
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
            opened, entry = await self.vfs.files.create(parent, name, 0o644, flags, OWNER)
            self.kernel.given(parent, name, self.vfs.remember(entry))
            self.kernel.attrs.pop(parent, None)
            return opened.handle

    async def create(self, parent: int, name: bytes, mode: int, target: bytes = b"") -> None:
        """mkdir, symlink."""
        async with self.kernel.locks[parent]:
            if await self._lookup(parent, name):
                raise TreeError(errno.EEXIST)
            entry = await self.vfs.tree.create(parent, name, mode, OWNER, target=target)
            self.kernel.given(parent, name, self.vfs.remember(entry))
            self.kernel.attrs.pop(parent, None)

    async def unlink(self, parent: int, name: bytes, *, directory: bool = False) -> None:
        async with self.kernel.locks[parent]:
            number = await self._lookup(parent, name)
            if not number:
                raise TreeError(errno.ENOENT)
            await self.vfs.tree.remove(parent, name, directory=directory)
            self.kernel.names.pop((parent, name), None)
            for changed in (parent, number):
                self.kernel.attrs.pop(changed, None)

    async def rename(self, parent: int, name: bytes, new_parent: int, new_name: bytes) -> None:
        async with AsyncExitStack() as locks:
            if parent != new_parent:
                await locks.enter_async_context(self.kernel.across)
            for number in dict.fromkeys((new_parent, parent)):
                await locks.enter_async_context(self.kernel.locks[number])
            moved = await self._lookup(parent, name)
            if not moved:
                raise TreeError(errno.ENOENT)
            replaced = await self._lookup(new_parent, new_name)
            await self.vfs.tree.rename(parent, name, new_parent, new_name, 0)
            self.kernel.names.pop((parent, name), None)
            self.kernel.names.pop((new_parent, new_name), None)
            for changed in (parent, new_parent, moved, replaced):
                self.kernel.attrs.pop(changed, None)

    async def link(self, parent: int, name: bytes, new_name: bytes) -> None:
        async with self.kernel.locks[parent]:
            number = await self._lookup(parent, name)
            if not number:
                raise TreeError(errno.ENOENT)
            entry = await self.vfs.tree.link(number, parent, new_name)
            self.kernel.given(parent, new_name, self.vfs.remember(entry))
            self.kernel.attrs.pop(parent, None)

    async def chmod(self, number: int, mode: int) -> None:
        entry = await self.vfs.set_attributes(number, None, Changes(mode=mode), None)
        self.kernel.attributes(entry)

    async def setxattr(self, number: int, name: bytes, value: bytes) -> None:
        await self.vfs.xattrs.set(number, name, value)
        self.kernel.attrs.pop(number, None)

    async def removexattr(self, number: int, name: bytes) -> None:
        await self.vfs.xattrs.remove(number, name)
        self.kernel.attrs.pop(number, None)

    async def xattrs(self, number: int) -> dict[bytes, bytes]:
        """All of them; the kernel keeps none."""
        xattrs = self.vfs.xattrs
        return {name: await xattrs.get(number, name) for name in await xattrs.list(number)}

    async def list(self, number: int) -> set[bytes]:
        """A listing, whose entries the kernel takes for lookups."""
        async with self.kernel.locks[number]:
            handle = self.vfs.directories.get(self.vfs.open_directory(number))
            found: set[bytes] = set()
            while True:
                listed = handle.next()
                if listed is not None:
                    handle.taken(listed)
                    if listed.counts:
                        found.add(listed.name)
                        self.kernel.given(number, listed.name, listed.entry)
                elif not await handle.fill():
                    return found
