"""What the tree needs from the network, as interfaces.

`fdfsfuse.vfs.remote` is the real thing; tests have an in-memory twin. All calls raise StatusError
(the peer said no) or ConnectionProblem (no answer within the mount's timeout).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Any, NamedTuple, Protocol

from fdfsfuse.proto import names


class ObjectInfo(NamedTuple):
    """What command 22 tells of an object: bytes, Unix seconds, CRC-32, address of the source."""

    size: int
    created_s: int
    crc32: int
    source: str


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
    def store_path_count(self) -> int:
        """Number of store paths: M00 .. of the volume's root."""

    def replicas(self) -> list[str]:
        """``address:port`` of the storages that hold the volume's objects."""

    def state(self) -> dict[str, Any]:
        """Session and traffic, for people, as JSON has it. May be called from any thread."""

    async def run(
        self, resumed: Callable[[], Awaitable[None]], held: Callable[[], Collection[int]]
    ) -> None:
        """Keep the session up until `close` or cancelled.

        Args:
            resumed: awaited whenever a session was opened or taken up again.
            held: inodes that the storage was told to keep; it must be told again then.
        """

    def close(self) -> None:
        """Let `run` end the session in good order, if that is quickly done, and return."""

    async def call(self, request: names.Request, *, timeout_s: float | None = None) -> Any:
        """Send a names request; return the answer struct that belongs to it."""

    async def read_into(self, file_id: str, offset: int, buffer: memoryview) -> int:
        """Fill *buffer* with content from *offset* on; return the number of bytes."""

    async def write_object(self, head: names.WriteObject, data: Sequence[bytes]) -> None:
        """Write the ``head.length`` bytes of *data* to an appender."""

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
