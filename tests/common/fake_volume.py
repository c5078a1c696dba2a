"""An in-memory twin of a cluster, for tests of the mount's tree without servers.

A volume (`fdfsfuse.vfs.backend`) counts requests, and can be told to be slow, dead or to fail. What
it answers is in tests/common/fake_tree.py.
"""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import trio

from fdfsfuse.client.names.lease import Lease, boottime
from fdfsfuse.errors import DeadlineExceeded, StatusError
from fdfsfuse.proto import names
from fdfsfuse.proto.names import Attr
from fdfsfuse.vfs.backend import Listener, ObjectInfo
from tests.common.fake_tree import FakeTree

_LEASE_S = 3600.0

NEVER = 10.0**9


class Snapshot(NamedTuple):
    """What mounts may have been told: by inode, and the inodes of (parent, name)."""

    attrs: dict[int, Attr]
    xattrs: dict[int, dict[bytes, bytes]]
    entries: dict[tuple[int, bytes], int]


class FakeBackend(FakeTree):
    """One volume. ``requests`` counts them by kind; ``down`` lets calls time out.

    ``posted`` is the number of changes that wait for their turn. ``lease`` lasts longer
    than a test; ``confirmed`` has the recalls that were confirmed.
    """

    def __init__(self, group: str) -> None:
        super().__init__()
        self.group = group
        self.connected = True
        self.answering = True
        self.copied = False
        self.store_path_count = 1
        self.requests: Counter[str] = Counter()
        self.down = False
        self.fail: dict[type | str, Exception] = {}
        self.gate: trio.Event | None = None
        self.closing = trio.Event()
        self.lease = Lease()
        self.lease.renew(boottime(), _LEASE_S)
        self._recalls = 0
        self.listener: Listener | None = None
        self.confirmed: list[tuple[int, list[int]]] = []
        self.reads: list[tuple[int, int]] = []
        self.writes: list[tuple[int, int]] = []
        self.writing = 0
        self.most_writing = 0
        self.posted = 0
        self.all_sent = True
        self._less_posted = trio.lowlevel.ParkingLot()
        self._to_post, self._from_post = trio.open_memory_channel[Any](10_000)

    # --- the interface of a backend ------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        return {"connected": self.connected}

    @property
    def unreachable(self) -> bool:
        return not self.connected

    @property
    def is_prompt(self) -> bool:
        return self.connected

    @property
    def answers(self) -> bool:
        return self.answering and self.connected and not self.down

    def replicas(self) -> list[str]:
        return ["127.0.0.3:23000"]

    async def run(self, listener: Listener) -> None:
        self.listener = listener
        await listener.resumed()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._carry_out_posted)
            await self.closing.wait()
            nursery.cancel_scope.cancel()

    def post(self, request: names.Request, done: Callable[[Exception | None], None]) -> bool:
        self.requests[type(request).__name__] += 1
        self.posted += 1
        self._to_post.send_nowait((request, done))
        return self.all_sent

    def hurry(self) -> None:
        """It never takes its time."""

    async def _carry_out_posted(self) -> None:
        async for request, done in self._from_post:
            error: Exception | None = None
            try:
                await self._carry_out(request, None)
            except (StatusError, DeadlineExceeded) as exc:
                error = exc
            self.posted -= 1
            self._less_posted.unpark_all()
            done(error)

    def recalled(self, number: int, kept: Sequence[int]) -> None:
        self.confirmed.append((number, list(kept)))

    def close(self) -> None:
        self.closing.set()

    async def call(self, request: names.Request, *, timeout_s: float | None = None) -> Any:
        self.requests[type(request).__name__] += 1
        if isinstance(request, (*names.CHANGES, names.Grant)):
            while self.posted:
                await self._less_posted.park()
        return await self._carry_out(request, timeout_s)

    async def _carry_out(self, request: names.Request, timeout_s: float | None) -> Any:
        kind = type(request)
        await self._pass(kind, timeout_s)
        return self.execute(request)

    def has_copies(self, file_id: str) -> bool:
        return self.copied

    async def read_into(
        self, file_id: str, offset: int, buffer: memoryview, *, published: bool = False
    ) -> int:
        self.requests["read"] += 1
        self.reads.append((offset, len(buffer)))
        await self._pass("read", None)
        content = self._content(file_id)
        if offset >= len(content):
            raise StatusError(errno.EINVAL)
        data = content[offset : offset + len(buffer)]
        buffer[: len(data)] = data
        return len(data)

    async def write_object(self, head: names.WriteObject, data: Sequence[bytes]) -> None:
        self.requests["write"] += 1
        self.writing += 1
        self.most_writing = max(self.most_writing, self.writing)
        try:
            await self._pass("write", None)
        finally:
            self.writing -= 1
        content = self._content(head.file_id)
        body = b"".join(data)
        assert len(body) == sum(length for _, length in head.pieces())
        assert head.view == self.view
        if head.file_id not in self.pending and not self._owner(head.file_id).in_place:
            raise StatusError(errno.ENOENT)
        for offset, length in head.pieces():
            if len(content) < offset:
                content.extend(bytes(offset - len(content)))
            content[offset : offset + length], body = body[:length], body[length:]
            self.writes.append((offset, length))

    async def delete_object(self, file_id: str) -> None:
        del self.objects[file_id]

    async def info(self, file_id: str) -> ObjectInfo:
        return ObjectInfo(len(self._content(file_id)), 1_700_000_000, 0xABCD, "127.0.0.3")

    async def _pass(self, kind: type | str, timeout_s: float | None) -> None:
        await trio.lowlevel.checkpoint()
        if self.down:
            await trio.sleep(timeout_s or 30.0)
            raise DeadlineExceeded("down")
        if self.gate is not None:
            await self.gate.wait()
        if kind in self.fail:
            raise self.fail[kind]

    # --- for tests --------------------------------------------------------------------------------

    async def change(self, request: names.Request) -> Any:
        """Another mount sends *request*; what it changes is recalled from this one."""
        before = self.snapshot()
        answer = self.execute(request)
        recall = self.recall_since(before)
        if self.listener is not None:
            self.listener.recalled(recall)
            while recall.number not in (number for number, _ in self.confirmed):  # noqa: ASYNC110
                await trio.sleep(0.001)
        return answer

    def snapshot(self) -> Snapshot:
        """The state, for `recall_since`."""
        xattrs = {ino: dict(found) for ino, found in self.xattrs.items()}
        return Snapshot(dict(self.attrs), xattrs, self._entries())

    def _entries(self) -> dict[tuple[int, bytes], int]:
        return {
            (parent, name): ino
            for parent, directory in self.directories.items()
            for name, (_, ino) in directory.entries.items()
        }

    def recall_since(self, before: Snapshot) -> names.Recall:
        """What is different from the state *before*."""
        attrs, xattrs, entries = before
        now = self._entries()
        changed = [entry for entry in {**entries, **now} if entries.get(entry) != now.get(entry)]
        inos = {ino for ino, attr in attrs.items() if self.attrs.get(ino) != attr}
        inos |= {ino for ino in attrs if self.xattrs.get(ino, {}) != xattrs.get(ino, {})}
        inos |= {parent for parent, _ in changed}
        content = [
            ino
            for ino in inos
            if ino in attrs and ino in self.attrs and attrs[ino].version != self.attrs[ino].version
        ]
        self._recalls += 1
        return names.Recall(self._recalls, sorted(inos), content, sorted(changed), [])


class FakeCluster:
    """Volumes by name; ``groups`` may grow while a test runs."""

    def __init__(self, *groups: str) -> None:
        self.groups = list(groups)
        self.backends: dict[str, FakeBackend] = {}
        self.polls = 0

    async def volumes(self) -> list[str]:
        self.polls += 1
        return list(self.groups)

    def backend(self, group: str) -> FakeBackend:
        return self.backends.setdefault(group, FakeBackend(group))
