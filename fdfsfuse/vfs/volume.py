"""One volume as the mount sees it: is it there, and what to do while it is not.

A call to a volume that is not connected waits, for at most the mount's timeout. A volume whose
call ended without an answer is *down*: further calls fail at once, until a probe was answered. So
a dead volume costs a few waiting requests and never the others.
"""

from __future__ import annotations

import logging
import time
from typing import Any

import trio

from fdfsfuse.errors import ConnectFailed, ConnectionProblem, FdfsError
from fdfsfuse.proto import names
from fdfsfuse.vfs.backend import Backend
from fdfsfuse.vfs.options import VfsOptions

log = logging.getLogger(__name__)

_PROBE_INTERVAL_S = 1.0
_PROBE_TIMEOUT_S = 3.0


class Volume:
    """A volume with its number in this mount.

    ``down``: see the module. ``held`` has the inodes that the storage was told to keep.
    ``root_attr`` are the last attributes of the root that the storage told.
    """

    def __init__(self, number: int, backend: Backend, options: VfsOptions) -> None:
        self.number = number
        self.backend = backend
        self.name = backend.group.encode()
        self.down = False
        self.times_down = 0
        self.held: set[int] = set()
        self.ended = trio.Event()
        self.root_attr: names.Attr | None = None
        self._options = options
        self._waiting = 0
        self._went_down = trio.Event()
        self._space = names.Space(0, 0, 0, 0)
        self._space_at = float("-inf")

    async def run(self) -> None:
        """Keep the session up and probe while the volume is down, until closed or cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._probe)
                await self.backend.run(self._on_resumed, lambda: self.held)
                nursery.cancel_scope.cancel()
        finally:
            self.ended.set()

    async def call(self, request: names.Request) -> Any:
        """Send a names request; see `Backend.call`. Fails at once while the volume is down."""
        if self.down or not self.backend.connected:
            return await self._wait_and_call(request)
        try:
            return await self.backend.call(request)
        except ConnectionProblem:
            self._mark_down()
            raise

    async def _wait_and_call(self, request: names.Request) -> Any:
        if self.down:
            raise ConnectFailed(f"the volume {self.backend.group} does not answer")
        if self._waiting >= self._options.max_waiting:
            raise ConnectFailed(f"too many requests wait for the volume {self.backend.group}")
        self._waiting += 1
        try:
            return await self.backend.call(request)
        except ConnectionProblem:
            self._mark_down()
            raise
        finally:
            self._waiting -= 1

    @property
    def waiting(self) -> int:
        """Requests that wait for a connection."""
        return self._waiting

    def check_up(self) -> None:
        """Raise ConnectFailed while the volume is down; before data transfers."""
        if self.down:
            raise ConnectFailed(f"the volume {self.backend.group} does not answer")

    async def space(self) -> names.Space:
        """StatFs, at most a little old; the last known while the volume does not answer."""
        if time.monotonic() - self._space_at > self._options.space_age_s and not self.down:
            try:
                self._space = await self.backend.call(names.StatFs(), timeout_s=1.0)
                self._space_at = time.monotonic()
            except FdfsError as exc:
                log.debug("%s: no StatFs: %s", self.backend.group, exc)
        return self._space

    async def _on_resumed(self) -> None:
        self._mark_up()
        try:
            self.root_attr = await self.backend.call(names.GetAttr(names.ROOT_INO), timeout_s=5.0)
        except FdfsError as exc:
            log.debug("%s: no attributes of the root: %s", self.backend.group, exc)

    def _mark_up(self) -> None:
        if self.down:
            self.down = False
            log.warning("the volume %s answers again", self.backend.group)

    def _mark_down(self) -> None:
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
