"""Carrying recalls out: in this mount's memory, then in the kernel's.

A recall is carried out in three steps:

1. what this mount remembers is dropped;
2. the kernel is told to forget attributes, which never waits;
3. the kernel is told to forget pages and names. This may wait: for a READ in flight of the same
   pages, or for a request in flight in the same directory, which the kernel has locked. So it is
   done in threads.

Then the recall is confirmed. If a request of this mount is in flight in one of the directories, its
names are forgotten when that request was answered, and the recall does not wait for that. And if
the kernel has not gone on with forgetting for a moment (`_LOCKED_S`, `_PAGES_LOCKED_S`) while
requests of this mount are in flight, to any volume, the recall is confirmed: a call that changes
names has locked the directory; or a page is locked by a READ or WRITE, or was changed through a
mapping and goes to this mount in a WRITE first. All these may themselves wait: a rename for its
other directory while a request there is in flight, a WRITE for an fsync of the file. Otherwise two
mounts that work in the same directories, or on one file, could wait for each other for ever: the
request, or that fsync, may be waiting until another mount confirms a recall of its own, which has
to wait in the same way.
The kernel keeps nothing of the answer to a request that was sent before the recall, and one that
comes during step 3 is answered with what is there now.

After step 2 a read() does without the pages that are outdated: the kernel first asks for the
attributes that it has forgotten, sees a new mtime, and drops the pages itself. That does not make
step 3 needless: while the kernel drops them for one read(), it holds the new attributes valid
already, and another read() at that moment may get an old page. That it asks, also when a lease has
run out (a mount that is stopped cannot drop pages), is what FUSE_AUTO_INVAL_DATA does, which
libfuse sets by default; with FUSE_EXPLICIT_INVAL_DATA the kernel would read pages without asking.
The price: it drops them after changes by this mount, too.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Final, Protocol

import trio

from fdfsfuse.proto import names
from fdfsfuse.proto.names import Attr
from fdfsfuse.vfs.ownfiles import tell

if TYPE_CHECKING:
    from fdfsfuse.vfs.context import Context
    from fdfsfuse.vfs.volume import Volume

log = logging.getLogger(__name__)

_THREADS: Final = 8
_LOCKED_S: Final = 0.1
"""The kernel forgets a name in microseconds, unless its directory is locked. This is long enough
for a thread to get its turn on a machine with much to do."""
_PAGES_LOCKED_S: Final = 0.005
"""The same for pages of an open file, and more for a large one. Where two mounts write to one file
and both sync it, each waits so long for the other, time and again."""
_FORGOTTEN_PER_S: Final = 1 << 30
"""Bytes of pages that the kernel forgets per second at least."""
_STEPS: Final = 5
"""In which that time is waited: when the whole process is stopped, only one of them is longer."""
_REFUSE_AGAIN_S: Final = 1.0


class Kernel(Protocol):
    """The caches of the kernel. To forget what it does not know is no error."""

    def store_pages(self, number: int, content: bytes, offset: int = 0) -> bool:
        """Give the kernel pages of a file.

        Waits for READs and WRITEs in flight, so only for a file that nobody has open.

        Args:
            content: the content of the file from *offset* to its end.
            offset: a multiple of the page size.

        Returns:
            Whether the kernel took them.
        """

    def forget_attributes(self, number: int) -> None:
        """Never waits."""

    def forget_pages(self, number: int) -> None:
        """Attributes and pages. May wait for READs in flight: to be called in a thread."""

    def forget_name(self, parent: int, name: bytes) -> None:
        """May wait for requests in the directory: to be called in a thread."""


class NoKernel:
    """Stands in for the kernel where nothing is mounted."""

    def store_pages(self, number: int, content: bytes, offset: int = 0) -> bool:
        return False

    def forget_attributes(self, number: int) -> None:
        pass

    def forget_pages(self, number: int) -> None:
        pass

    def forget_name(self, parent: int, name: bytes) -> None:
        pass


class Recalls:
    """The recalls of one volume.

    ``late``: how many names were recalled, but are not forgotten by the kernel yet.
    """

    def __init__(self, context: Context, volume: Volume) -> None:
        self._context = context
        self._volume = volume
        # Threads that wait must not keep those of other volumes from working.
        self._limiter = trio.CapacityLimiter(_THREADS)
        self.late = 0
        self._refused_at = float("-inf")

    def recalled(self, message: names.Recall) -> None:
        """Carry a recall out; does not block."""
        if message.everything:
            self._recall_everything(message)
            return
        if message.grants or message.all_grants:
            directories = None if message.all_grants else message.grants
            self._volume.memory.revoke(directories)
            self._context.spawn(self._give_back, message.number, directories)
            return
        volume, context = self._volume, self._context
        memory, numbers = volume.memory, context.numbers
        inos = [*message.attrs, *message.unused]
        memory.recall(inos, message.names)
        changed = frozenset(message.content)
        for ino in inos:
            number = numbers.of_inode(volume.number, ino)
            state = context.states.get(number)
            if state is not None:
                state.recalled()
            if ino in changed:
                context.pages.drop(number)
                context.contents.drop(number)
            if numbers.known(number):
                context.kernel.forget_attributes(number)
        pages = [number for number in map(self._number, changed) if numbers.known(number)]
        entries = [(p, n) for p, n in message.names if numbers.known(self._number(p))]
        parents = {parent for parent, _ in entries}
        if any(memory.flights.concern(parent) for parent in parents):
            self._forget_later(entries)
            entries = []
        if pages or entries:
            context.spawn(self._forget_and_confirm, message, pages, entries)
        else:
            self._confirm(message)

    async def _give_back(self, number: int, directories: list[int] | None) -> None:
        """Confirm a recall of grants once the storage knows everything that was done under them."""
        await self._volume.own_changes.wait()
        untold = await tell(self._volume.own_files.inside(directories))
        if any(state.unreachable for state in untold):
            return  # the storage repeats the recall, or the lease ends
        self._volume.backend.recalled(number, [])

    def _number(self, ino: int) -> int:
        return self._context.numbers.of_inode(self._volume.number, ino)

    def _recall_everything(self, message: names.Recall) -> None:
        memory = self._volume.memory
        entries = memory.names_in_use()
        idle = [entry for entry in entries if not memory.flights.concern(entry[0])]
        busy = [entry for entry in entries if memory.flights.concern(entry[0])]
        forgotten = self.lost()
        if busy:
            self._forget_later(busy)
        self._context.spawn(self._forget_names, message, idle, forgotten)

    async def _forget_names(
        self, message: names.Recall, entries: list[tuple[int, bytes]], others: trio.Event
    ) -> None:
        await others.wait()
        # The kernel may rely on names that are not remembered here any more: until they expire.
        await trio.sleep(self._volume.memory.unknown_left())
        await self._forget_and_confirm(message, [], entries)

    def _confirm(self, message: names.Recall) -> None:
        inos = dict.fromkeys((*message.attrs, *message.unused))
        self._volume.backend.recalled(message.number, self._volume.memory.kept(inos))

    async def _forget_and_confirm(
        self, message: names.Recall, pages: list[int], entries: list[tuple[int, bytes]]
    ) -> None:
        self.late += len(entries)
        try:
            async with trio.open_nursery() as nursery:
                # Pages that are locked do not keep names from being forgotten, nor these those.
                enough = [trio.Event(), trio.Event()]
                locked_s = self._pages_locked_s(pages)
                nursery.start_soon(self._forget_watched, pages, [], locked_s, enough[0])
                nursery.start_soon(self._forget_watched, [], entries, _LOCKED_S, enough[1])
                for event in enough:
                    await event.wait()
                self._confirm(message)
        finally:
            self.late -= len(entries)

    def _pages_locked_s(self, numbers: list[int]) -> float:
        """How long to wait for pages of these files. Those of a file nobody has open are free."""
        states = self._context.states
        sizes = [states[number].size for number in numbers if number in states]
        if not sizes:
            return _LOCKED_S
        return min(_LOCKED_S, _PAGES_LOCKED_S + max(sizes) / _FORGOTTEN_PER_S)

    async def _forget_watched(
        self,
        pages: list[int],
        entries: list[tuple[int, bytes]],
        locked_s: float,
        enough: trio.Event,
    ) -> None:
        """Let the kernel forget. Sets *enough* then, or if that does not go on for *locked_s*."""
        if not pages and not entries:
            enough.set()
            return
        forgotten: list[object] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch, forgotten, locked_s, enough)
            await self._forget(pages, entries, forgotten)
            enough.set()
            nursery.cancel_scope.cancel()

    async def _watch(self, forgotten: list[object], locked_s: float, enough: trio.Event) -> None:
        before = -1
        # A rename to another volume is refused, but both directories are locked until then.
        while before != len(forgotten) or not self._context.has_requests():
            before = len(forgotten)
            for _ in range(_STEPS):
                await trio.sleep(locked_s / _STEPS)
        enough.set()

    def _forget_later(self, entries: list[tuple[int, bytes]]) -> None:
        self.late += len(entries)
        self._context.spawn(self._forget_when_landed, entries)

    async def _forget_when_landed(self, entries: list[tuple[int, bytes]]) -> None:
        try:
            for parent in {parent for parent, _ in entries}:
                await self._volume.wait_landed(parent)
            await self._forget([], entries, [])
        finally:
            self.late -= len(entries)

    def never_made(self, inos: Collection[int], entries: list[tuple[int, bytes]]) -> None:
        """Let the kernel forget what it was told of a change that the storage has refused."""
        memory, context = self._volume.memory, self._context
        memory.recall(inos, entries)
        for number in map(self._number, inos):
            state = context.states.get(number)
            if state is not None:
                state.recalled()
            if context.numbers.known(number):
                context.kernel.forget_attributes(number)
        self._forget_later(entries)

    def changed_by_name(self, attr: Attr) -> None:
        """A change by name, of this mount, was about this inode.

        When the kernel found another one under a name that it should have forgotten, it keeps the
        attributes of this one.
        """
        number = self._number(attr.ino)
        if self.late and self._context.numbers.known(number):
            self._context.kernel.forget_attributes(number)

    def refuse_orphan(self) -> bool:
        """Whether opening an inode that has no name any more is to fail with ESTALE.

        The kernel may have found it by a name that was recalled, but is not forgotten yet. ESTALE
        makes it look the name up again, once for each open(). A second ESTALE right after the first
        would reach the program, and the inode may just as well have lost its name this moment: so
        one refusal within a second is enough.
        """
        now = time.monotonic()
        if not self.late or now - self._refused_at < _REFUSE_AGAIN_S:
            return False
        self._refused_at = now
        return True

    async def _forget(
        self, pages: list[int], entries: list[tuple[int, bytes]], forgotten: list[object]
    ) -> None:
        """Let the kernel forget; what is done is added to *forgotten*."""
        kernel = self._context.kernel
        named = [(self._number(parent), name) for parent, name in entries]

        def forget() -> None:
            for number in pages:
                kernel.forget_pages(number)
                forgotten.append(number)
            for parent, name in named:
                kernel.forget_name(parent, name)
                forgotten.append(name)

        await trio.to_thread.run_sync(forget, abandon_on_cancel=True, limiter=self._limiter)

    def lost(self) -> trio.Event:
        """The lease is lost: forget everything, and let no call return before that is done.

        The kernel forgets names by itself: it was told to rely on them no longer than the lease.

        Returns:
            What is set when the kernel has forgotten attributes, and pages unless they are locked.
        """
        volume, context = self._volume, self._context
        volume.memory.clear()
        context.contents.clear()
        numbers = context.numbers.of_volume(volume.number)
        pages = [number for number in numbers if context.pages.drop(number)]
        for state in context.states.values():
            if state.volume is volume:
                state.recalled()
        for state in volume.own_files.lost():
            state.write_back_soon()
        enough = trio.Event()
        context.spawn(self._forget_all, volume.hold_answers(), numbers, pages, enough)
        return enough

    async def _forget_all(
        self, done: trio.Event, numbers: Iterable[int], pages: list[int], enough: trio.Event
    ) -> None:
        kernel = self._context.kernel

        def forget() -> None:
            for number in numbers:
                kernel.forget_attributes(number)

        try:
            await trio.to_thread.run_sync(forget, abandon_on_cancel=True)
        finally:
            done.set()
        await self._forget_watched(pages, [], _LOCKED_S, enough)
