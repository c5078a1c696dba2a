"""One volume as the mount sees it: its calls, and what happens to them while it does not answer.

A call to a volume that does not answer waits for at most the mount's timeout (with ``hard``: for as
long as it takes). When a call ends without an answer, the volume is *down*: further calls fail at
once until a probe is answered. Only ``max_waiting`` calls may wait at a time; once the oldest of
them has waited for `_STUCK_S`, further ones fail at once. So a dead volume holds up a bounded
number of requests, and never the other volumes.
"""

from __future__ import annotations

import logging
import time
from typing import Any

import trio
from trio.lowlevel import ParkingLot

from fdfsfuse.client.names.lease import boottime
from fdfsfuse.errors import (
    ConnectFailed,
    ConnectionProblem,
    DeadlineExceeded,
    FdfsError,
    StatusError,
)
from fdfsfuse.proto import names
from fdfsfuse.vfs import ownchanges
from fdfsfuse.vfs.ahead import Ahead
from fdfsfuse.vfs.backend import Backend
from fdfsfuse.vfs.context import Context
from fdfsfuse.vfs.memory import Memory
from fdfsfuse.vfs.ownchanges import OwnChanges
from fdfsfuse.vfs.ownfiles import OwnFiles
from fdfsfuse.vfs.recalls import Recalls

log = logging.getLogger(__name__)

_PROBE_INTERVAL_S = 1.0
_PROBE_TIMEOUT_S = 3.0
_STUCK_S = 2.0
"""Many requests at a time are nothing unusual, unless they get no answers."""


class Volume:
    """A volume with its number in this mount.

    Attributes:
        down: see the module; ``times_down`` counts how often it became so.
        held_open: the inodes that the storage was told to keep because they are open here.
        root_attr: the last known attributes of the volume's root.
        memory: what is remembered of the storage's answers; ``recalls`` carries out its recalls.
        files_ahead, names_ahead, xattrs_ahead: decide which contents, names and xattrs are asked
            for ahead of need.
        own_files: new files that the storage was not told of yet.
        own_changes: changes that are answered here, ahead of the storage.
        ended: set when `run` has ended.
    """

    def __init__(
        self,
        number: int,
        backend: Backend,
        context: Context,
    ) -> None:
        options = context.options
        self.number = number
        self.backend = backend
        self.name = backend.group.encode()
        self.down = False
        self.times_down = 0
        self.held_open: set[int] = set()
        self.memory = Memory(boottime, backend.lease, options.cached_entries)
        self.files_ahead = Ahead(options.ahead_files if options.read_ahead_bytes else 0)
        self.names_ahead = Ahead(options.ahead_names)
        self.xattrs_ahead = Ahead(options.ahead_names)
        self.ended = trio.Event()
        self.root_attr: names.Attr | None = None
        self._options = options
        self.recalls = Recalls(context, self)
        self.own_files = OwnFiles(self)
        self.own_changes = OwnChanges(context, self)
        self._waiting: dict[int, float] = {}
        self._tickets = 0
        self._went_down = trio.Event()
        self._answers_held: trio.Event | None = None
        self._landed = ParkingLot()
        self._space = names.Space(0, 0, 0, 0)
        self._space_at = float("-inf")

    async def run(self) -> None:
        """Keep the session up and probe while the volume is down, until closed or cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._probe)
                await self.backend.run(self)
                nursery.cancel_scope.cancel()
        finally:
            self.ended.set()

    async def call(self, request: names.Request, *, timeout_s: float | None = None) -> Any:
        """Send a names request and remember what its answer says; see `Backend.call`.

        Raises:
            ConnectFailed: see `enter`.
            StatusError, ConnectionProblem: see `fdfsfuse.vfs.backend`.
        """
        memory = self.memory
        ticket = self.enter()
        began = memory.flights.begin(request)
        try:
            if self.own_files:
                await self.own_files.tell_before(request)
            if self.own_changes and not ownchanges.is_in_turn(request):
                await self.wait_for_changes(timeout_s)
            answer = await self.backend.call(request, timeout_s=timeout_s)
            if self._answers_held is not None:
                await self._wait_for_answers()
            memory.learn(request, answer, began)
        except StatusError as exc:
            memory.refused(request, exc, began)
            raise
        except ConnectionProblem:
            # If the storage answers others, only this call takes long: it may have much to copy.
            if timeout_s is None and not self.backend.answers:
                self.mark_down()
            raise
        finally:
            self.leave(ticket)
            memory.flights.end(began)
            if self._landed:
                self._landed.unpark_all()
        return answer

    async def wait_for_changes(self, timeout_s: float | None = None) -> None:
        """Wait until the storage has made all changes that were answered here.

        Args:
            timeout_s: how long to wait; as long as for any call of the mount if None.

        Raises:
            DeadlineExceeded: it has not made them in time.
        """
        if not self.own_changes:
            return
        limit_s = self._options.patience_s if timeout_s is None else timeout_s
        with trio.move_on_after(limit_s) as scope:
            await self.own_changes.wait()
        if scope.cancelled_caught:
            raise DeadlineExceeded(f"the volume {self.backend.group} does not answer in time")

    async def wait_ahead(self, directory: int) -> None:
        """Wait for what is being asked for ahead of need in *directory*.

        The kernel may have the directory locked meanwhile.

        Raises:
            ConnectFailed: see `enter`.
        """
        for ahead in (self.files_ahead, self.names_ahead):
            coming = ahead.coming(directory)
            if coming is not None:
                ticket = self.enter()
                try:
                    with self.memory.flights.locked(directory):
                        await coming.wait()
                finally:
                    self.leave(ticket)
                    self._landed.unpark_all()

    async def _wait_for_answers(self) -> None:
        while self._answers_held is not None:
            held = self._answers_held
            await held.wait()
            if self._answers_held is held:
                self._answers_held = None

    async def wait_landed(self, directory: int) -> None:
        """Wait until no request that concerns *directory* is in flight."""
        while self.memory.flights.concern(directory):
            await self._landed.park()

    def hold_answers(self) -> trio.Event:
        """Let no call return before the event that is returned was set."""
        self._answers_held = trio.Event()
        return self._answers_held

    def enter(self) -> int:
        """A request or transfer begins. Returns a ticket for `leave`, which must follow.

        Raises:
            ConnectFailed: the volume is down, or so many wait for an answer already, and for so
                long, that it may be.
        """
        if self.down:
            self.check_up()
        waiting = self._waiting
        if len(waiting) >= self._options.max_waiting:
            oldest = next(iter(waiting.values()))
            if time.monotonic() - oldest > _STUCK_S or not self.backend.connected:
                raise ConnectFailed(f"too many requests wait for the volume {self.backend.group}")
        self._tickets = ticket = self._tickets + 1
        waiting[ticket] = time.monotonic()
        return ticket

    def leave(self, ticket: int) -> None:
        """The request or transfer is over."""
        del self._waiting[ticket]

    @property
    def waiting(self) -> int:
        """How many requests and transfers are under way."""
        return len(self._waiting)

    def check_up(self) -> None:
        """Raise ConnectFailed while the volume is down."""
        if self.down:
            raise ConnectFailed(f"the volume {self.backend.group} does not answer")

    async def space(self) -> names.Space:
        """The volume's space, at most ``space_age_s`` old; older while it does not answer."""
        if time.monotonic() - self._space_at > self._options.space_age_s and not self.down:
            try:
                self._space = await self.backend.call(names.StatFs(), timeout_s=1.0)
                self._space_at = time.monotonic()
            except FdfsError as exc:
                log.debug("%s: no StatFs: %s", self.backend.group, exc)
        return self._space

    # --- what the session tells ------------------------------------------------------------------

    def held(self) -> set[int]:
        """See `Listener`."""
        return self.held_open

    def recalled(self, message: names.Recall) -> None:
        """See `Listener`."""
        self.recalls.recalled(message)

    def lease_lost(self) -> None:
        """See `Listener`."""
        log.info("%s: the lease was lost", self.backend.group)
        self.recalls.lost()

    async def resumed(self) -> None:
        """See `Listener`."""
        self._mark_up()
        try:
            self.root_attr = await self.call(names.GetAttr(names.ROOT_INO), timeout_s=5.0)
        except FdfsError as exc:
            log.debug("%s: no attributes of the root: %s", self.backend.group, exc)

    def _mark_up(self) -> None:
        if self.down:
            self.down = False
            log.warning("the volume %s answers again", self.backend.group)

    def mark_down(self) -> None:
        """A request had no answer in time: let the next ones fail at once."""
        if not self.down:
            self.down = True
            self.times_down += 1
            log.warning("the volume %s does not answer", self.backend.group)
            self._went_down.set()

    async def _probe(self) -> None:
        while True:
            await self._went_down.wait()
            self._went_down = trio.Event()
            while self.down:
                await trio.sleep(_PROBE_INTERVAL_S)
                try:
                    await self.backend.call(names.KeepAlive(), timeout_s=_PROBE_TIMEOUT_S)
                except FdfsError as exc:
                    log.debug("%s: probe: %s", self.backend.group, exc)
                else:
                    self._mark_up()
