"""Questions to the trackers, with trio; see `fdfsfuse.client.plans.trackers`."""

from __future__ import annotations

from collections.abc import Sequence

from fdfsfuse.client.address import Address
from fdfsfuse.client.plans.trackers import TrackerPlans, UploadTarget
from fdfsfuse.client.pool import Pool
from fdfsfuse.client.runner import run_plan
from fdfsfuse.client.views import Candidate
from fdfsfuse.proto.tracker import GroupStat, ServerStatus, StorageStat

GONE = frozenset({ServerStatus.DELETED, ServerStatus.IP_CHANGED, ServerStatus.NONE})
"""States of storages that will not come back."""


class TrackerClient:
    """Asks *trackers* in turn until one answers; connections are kept in *pool*.

    All methods raise StatusError (2: there is no such group, or no server can be handed out; 28:
    no space) or ConnectionProblem when no tracker answered, each within `TRY_TIMEOUT_S`.
    """

    def __init__(
        self,
        trackers: Sequence[Address] | TrackerPlans,
        pool: Pool,
    ) -> None:
        if not isinstance(trackers, TrackerPlans):
            trackers = TrackerPlans(trackers)
        self._plans = trackers
        self._pool = pool

    @property
    def trackers(self) -> tuple[Address, ...]:
        """The addresses, without duplicates."""
        return self._plans.trackers

    async def query_store(self, group: str | None = None) -> UploadTarget:
        """Where to upload, in *group* or anywhere (101, 104)."""
        return await run_plan(self._pool, "upload", self._plans.query_store(group))

    async def query_fetch(self, group: str, name: str) -> Address:
        """A storage that has the file (102)."""
        return await run_plan(self._pool, f"{group}/{name}", self._plans.query_fetch(group, name))

    async def query_update(self, group: str, name: str) -> Address:
        """The storage for changes of the file, and for its metadata (103)."""
        return await run_plan(self._pool, f"{group}/{name}", self._plans.query_update(group, name))

    async def query_fetch_all(self, group: str, name: str) -> list[Address]:
        """All storages that are believed to have the file (105)."""
        plan = self._plans.query_fetch_all(group, name)
        return await run_plan(self._pool, f"{group}/{name}", plan)

    async def list_groups(self) -> list[GroupStat]:
        """All groups, sorted by name (91)."""
        return await run_plan(self._pool, "list of groups", self._plans.list_groups())

    async def list_storages(self, group: str) -> list[StorageStat]:
        """All storages of *group*, sorted by id, deleted ones included (92)."""
        return await run_plan(self._pool, f"storages of {group}", self._plans.list_storages(group))

    async def find_candidates(self, group: str) -> list[Candidate]:
        """The storages of *group* that may keep its tree, for `open_session`."""
        return [
            Candidate(stat.storage_id, Address(stat.ip, stat.storage_port))
            for stat in await self.list_storages(group)
            if stat.status not in GONE and stat.ip and 0 < stat.storage_port < 65536
        ]
