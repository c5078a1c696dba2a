"""What the tree needs from the network, as interfaces.

`fdfsfuse.vfs.remote` implements them; tests have an in-memory twin. All calls raise StatusError
(the server answered with an error) or ConnectionProblem (no answer within the mount's timeout).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple, Protocol

from fdfsfuse.client.names.lease import Lease
from fdfsfuse.proto import names


class ObjectInfo(NamedTuple):
    """The answer to command 22: bytes, Unix seconds, CRC-32, address of the source storage."""

    size: int
    created_s: int
    crc32: int
    source: str


class Listener(Protocol):
    """Is told what happens to a volume's session. Only `resumed` may wait."""

    async def resumed(self) -> None:
        """A session was opened, or continued on a new connection."""

    def held(self) -> Collection[int]:
        """The inodes that are open: the storage is told of them on each new connection."""

    def recalled(self, message: names.Recall) -> None:
        """The storage recalls something; to be confirmed by `Backend.recalled`."""

    def lease_lost(self) -> None:
        """The lease has run out. Called before any further answer is given."""


class Backend(Protocol):
    """One volume. File ids are file names without the group, ``M00/00/0C/...``."""

    @property
    def group(self) -> str:
        """The volume's name."""

    @property
    def view(self) -> int:
        """The number of the view that the session acts in, for WRITE_OBJECT."""

    @property
    def connected(self) -> bool:
        """Whether the session is up right now."""

    @property
    def unreachable(self) -> bool:
        """Whether the last attempt to get a session has failed."""

    @property
    def is_prompt(self) -> bool:
        """Whether the storage is connected and has answered something just now."""

    @property
    def answers(self) -> bool:
        """Whether the storage that keeps the names has answered anything in the last seconds."""

    @property
    def lease(self) -> Lease:
        """Until when answers that were not recalled may be relied upon."""

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
        """Let `run` end: it closes the session first, if that does not take long."""

    async def call(self, request: names.Request, *, timeout_s: float | None = None) -> Any:
        """Send a names request; return the answer struct that belongs to it."""

    def post(self, request: names.Request, done: Callable[[Exception | None], None]) -> bool:
        """Send a change, while it `is_prompt`.

        The storage may take its time with it until `call` or `hurry` is called.

        Args:
            done: called with None when the change was made, else with the error.

        Returns:
            Whether it is certain to arrive even if this process is killed now.
        """

    def hurry(self) -> None:
        """Let the storage answer soon what was posted: somebody waits for it now."""

    def recalled(self, number: int, kept: Sequence[int]) -> None:
        """Confirm a recall; see `names.Recalled`."""

    def has_copies(self, file_id: str) -> bool:
        """Whether storages other than the names primary have the published content of an object."""

    async def read_into(
        self, file_id: str, offset: int, buffer: memoryview, *, published: bool = False
    ) -> int:
        """Fill *buffer* with content from *offset* on; return the number of bytes.

        Args:
            published: the content that was committed last will do, without what was written in
                place since. So another storage may be asked if the names primary does not answer.
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
