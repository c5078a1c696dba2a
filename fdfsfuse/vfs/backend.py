"""What the tree needs from the network, as interfaces.

`fdfsfuse.vfs.remote` is the real thing; tests have an in-memory twin. All calls raise StatusError
(the peer said no) or ConnectionProblem (no answer within the mount's timeout).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple, Protocol

from fdfsfuse.client.lease import Lease
from fdfsfuse.proto import names


class ObjectInfo(NamedTuple):
    """What command 22 tells of an object: bytes, Unix seconds, CRC-32, address of the source."""

    size: int
    created_s: int
    crc32: int
    source: str


class Listener(Protocol):
    """Who is told what happens to a volume's session. Only `resumed` may wait."""

    async def resumed(self) -> None:
        """A session was opened or taken up again."""

    def held(self) -> Collection[int]:
        """The inodes that the storage was told to keep; it must be told again."""

    def recalled(self, message: names.Recall) -> None:
        """To be confirmed by `Backend.recalled`."""

    def lease_lost(self) -> None:
        """The lease had run out; called before any further answer is given."""


class Backend(Protocol):
    """One volume. File ids are file names without the group, ``M00/00/0C/...``."""

    @property
    def group(self) -> str:
        """The volume's name."""

    @property
    def view(self) -> int:
        """Number of the view that the session acts in, for WRITE_OBJECT."""

    @property
    def connected(self) -> bool:
        """Whether the session is up right now."""

    @property
    def unreachable(self) -> bool:
        """Whether the last attempt to get a session has failed."""

    @property
    def is_prompt(self) -> bool:
        """Whether there is a connection to the storage, which has answered until a moment ago."""

    @property
    def answers(self) -> bool:
        """Whether the storage that keeps the names has answered anything in the last seconds."""

    @property
    def lease(self) -> Lease:
        """Until when what was told, and not recalled, may be relied upon."""

    @property
    def store_path_count(self) -> int:
        """Number of store paths: M00 .. of the volume's root."""

    def replicas(self) -> list[str]:
        """``address:port`` of the storages that hold the volume's objects."""

    def state(self) -> dict[str, Any]:
        """Session and traffic, for people, as JSON has it. May be called from any thread."""

    async def run(self, listener: Listener) -> None:
        """Keep the session up until `close` or cancelled."""

    def close(self) -> None:
        """Let `run` end the session in good order, if that is quickly done, and return."""

    async def call(self, request: names.Request, *, timeout_s: float | None = None) -> Any:
        """Send a names request; return the answer struct that belongs to it."""

    def post(self, request: names.Request, done: Callable[[Exception | None], None]) -> bool:
        """Send a change, while it `is_prompt`.

        *done* is called with None when it was made, else with the error. The storage may take its
        time, until something is called, or `hurry`. True: it is on its way, also if this process
        is killed now.
        """

    def hurry(self) -> None:
        """Somebody has begun to wait for what was posted."""

    def recalled(self, number: int, kept: Sequence[int]) -> None:
        """Confirm a recall; see `names.Recalled`."""

    def has_copies(self, file_id: str) -> bool:
        """Whether other storages have an object as the names tell of it."""

    async def read_into(
        self, file_id: str, offset: int, buffer: memoryview, *, published: bool = False
    ) -> int:
        """Fill *buffer* with content from *offset* on; return the number of bytes.

        *published*: content as the names tell of it will do, so that another storage may be asked
        when the one that keeps them does not answer. What was written since is not there.
        """

    async def write_object(self, head: names.WriteObject, data: Sequence[bytes]) -> None:
        """Write *data*, the bytes of all pieces of *head*, to an appender."""

    async def delete_object(self, file_id: str) -> None:
        """Delete an unnamed object."""

    async def info(self, file_id: str) -> ObjectInfo:
        """Describe an object."""


class Cluster(Protocol):
    """The trackers."""

    async def volumes(self) -> list[str]:
        """Names of all volumes. Raises ConnectionProblem when no tracker answers."""

    def backend(self, group: str) -> Backend:
        """A volume; nothing is connected before its `Backend.run`."""
