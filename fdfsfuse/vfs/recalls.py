"""Carrying recalls out: in this mount's memory, then in the kernel's.

A recall is carried out in three steps:

1. what this mount remembers is dropped;
2. the kernel is told to forget attributes, which never waits;
3. the kernel is told to forget pages and names. This may wait: for a READ in flight of the same
   pages, or for a request in flight in the same directory, which the kernel has locked. So it
   happens in threads.

Then the recall is confirmed. But when a request of this mount is in flight in one of the
directories, or a READ or WRITE of one of the files, it is confirmed after step 2, and step 3
follows when that request was answered. The request itself may be waiting for another mount which
has just such a recall from us: two mounts that work in one directory would wait for each other.
What the request's answer tells is not kept by the kernel, as it was sent before the recall.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Final, Protocol

import trio

from fdfsfuse.proto import names
from fdfsfuse.vfs.ownfiles import tell

if TYPE_CHECKING:
    from fdfsfuse.vfs.context import Context
    from fdfsfuse.vfs.volume import Volume

log = logging.getLogger(__name__)

_THREADS: Final = 8
_REFUSE_AGAIN_S: Final = 1.0


class Kernel(Protocol):
    """The caches of the kernel. What it does not know is forgotten already."""

    def store_pages(self, number: int, content: bytes, offset: int = 0) -> bool:
        """The content of a file from *offset*, a whole number of pages, to its end becomes pages.

        False when that is not possible. Waits for READs and WRITEs in flight: only for a file that
        nobody has open.
        """

    def forget_attributes(self, number: int) -> None:
        """Never waits."""

    def forget_pages(self, number: int) -> None:
        """Attributes and pages. May wait for READs in flight: to be called in a thread."""

    def forget_name(self, parent: int, name: bytes) -> None:
        """May wait for requests in the directory: to be called in a thread."""


class NoKernel:
    """Without a mount there is nothing to forget."""

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

    ``late``: names that were recalled and confirmed, but are not forgotten yet.
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
        busy = False
        for ino in inos:
            number = numbers.of_inode(volume.number, ino)
            state = context.states.get(number)
            if state is not None:
                state.recalled()
                busy = busy or (ino in changed and state.transfers > 0)
            if ino in changed:
                context.pages.drop(number)
                context.contents.drop(number)
            if numbers.known(number):
                context.kernel.forget_attributes(number)
        pages = [number for number in map(self._number, changed) if numbers.known(number)]
        entries = [(p, n) for p, n in message.names if numbers.known(self._number(p))]
        parents = {parent for parent, _ in entries}
        if busy or any(memory.flights.concern(parent) for parent in parents):
            self._confirm(message)
            self._forget_later(pages, entries)
        elif pages or entries:
            context.spawn(self._forget_and_confirm, message, pages, entries)
        else:
            self._confirm(message)

    async def _give_back(self, number: int, directories: list[int] | None) -> None:
        """Confirm the recall of grants once the storage knows of all files that were made there."""
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
        self.lost()
        if busy:
            self._forget_later([], busy)
        self._context.spawn(self._forget_names, message, idle)

    async def _forget_names(self, message: names.Recall, entries: list[tuple[int, bytes]]) -> None:
        # The kernel may know names that are not remembered here any more: these have to run out.
        await trio.sleep(self._volume.memory.unknown_left())
        await self._forget_and_confirm(message, [], entries)

    def _confirm(self, message: names.Recall) -> None:
        inos = dict.fromkeys((*message.attrs, *message.unused))
        self._volume.backend.recalled(message.number, self._volume.memory.kept(inos))

    async def _forget_and_confirm(
        self, message: names.Recall, pages: list[int], entries: list[tuple[int, bytes]]
    ) -> None:
        try:
            await self._forget(pages, entries)
        finally:
            self._confirm(message)

    def _forget_later(self, pages: list[int], entries: list[tuple[int, bytes]]) -> None:
        self.late += len(entries)
        self._context.spawn(self._forget_when_landed, pages, entries)

    async def _forget_when_landed(self, pages: list[int], entries: list[tuple[int, bytes]]) -> None:
        try:
            for parent in {parent for parent, _ in entries}:
                await self._volume.wait_landed(parent)
            await self._forget(pages, entries)
        finally:
            self.late -= len(entries)

    def never_made(self, inos: Collection[int], entries: list[tuple[int, bytes]]) -> None:
        """The kernel was told of something that did not become so at the storage."""
        memory, context = self._volume.memory, self._context
        memory.recall(inos, entries)
        for number in map(self._number, inos):
            state = context.states.get(number)
            if state is not None:
                state.recalled()
            if context.numbers.known(number):
                context.kernel.forget_attributes(number)
        self._forget_later([], entries)

    def refuse_orphan(self) -> bool:
        """Whether opening an inode without a name is to fail with ESTALE.

        The kernel may have found it by a name that was recalled, but is not forgotten yet, and
        looks it up again. It does so once for each open(), so a second refusal right after the
        first would reach the program; the inode may as well have lost its name just now.
        """
        now = time.monotonic()
        if not self.late or now - self._refused_at < _REFUSE_AGAIN_S:
            return False
        self._refused_at = now
        return True

    async def _forget(self, pages: list[int], entries: list[tuple[int, bytes]]) -> None:
        kernel = self._context.kernel
        named = [(self._number(parent), name) for parent, name in entries]

        def forget() -> None:
            for parent, name in named:
                kernel.forget_name(parent, name)
            for number in pages:
                kernel.forget_pages(number)

        await trio.to_thread.run_sync(forget, abandon_on_cancel=True, limiter=self._limiter)

    def lost(self) -> None:
        """The lease is lost: nothing is answered before all that was told is forgotten.

        Names need not be forgotten: the kernel was told to rely on them for no longer than the
        lease.
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
        context.spawn(self._forget_all, volume.hold_answers(), numbers, pages)

    async def _forget_all(self, done: trio.Event, numbers: Iterable[int], pages: list[int]) -> None:
        kernel = self._context.kernel

        def forget() -> None:
            for number in numbers:
                kernel.forget_attributes(number)

        try:
            await trio.to_thread.run_sync(forget, abandon_on_cancel=True)
        finally:
            done.set()
        await self._forget(pages, [])
