"""Plans that read: content, file info, metadata.

Reading may be repeated, so it goes on with another storage of the group when one does not answer.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from isal import isal_zlib

from fdfsfuse.client.address import Address
from fdfsfuse.client.plans.steps import Ask, Deliver, Open, Plan, Receive, T
from fdfsfuse.client.plans.trackers import TrackerPlans
from fdfsfuse.client.sources import CHUNK_SIZE
from fdfsfuse.errors import (
    ConnectionProblem,
    FdfsError,
    IntegrityError,
    NotFoundError,
    ProtocolError,
    StatusError,
    UsageError,
)
from fdfsfuse.proto import metadata
from fdfsfuse.proto.fileid import FileKind, NameInfo, decode_name, split_file_id
from fdfsfuse.proto.storage import (
    NO_CRC,
    QUIET_WHEN_MISSING,
    Download,
    FileInfo,
    FileRequest,
    StorageCommand,
)

MEMORY_MAX = 256 << 20
"""Most bytes that a download to memory returns."""
METADATA_MAX = 256 << 10
"""Longest metadata text that is accepted; a storage's own limit is its buff_size."""

_WHOLE_MAX = 64 << 10
_INFO_MAX = 70
_MADE_SUFFIX = re.compile(r"\d{7}\Z|\d*\.[A-Za-z0-9._-]+\Z")


@dataclass(frozen=True, slots=True)
class FileDetails:
    """What is known of a file.

    ``created`` in Unix seconds. ``crc32`` is that of the content (zlib); the storage reads an
    appender or a slave for it. ``source`` is the address or the id of the storage that took the
    upload. ``kind`` is NORMAL for slaves with short names (protocol/wire.md section 5, trap 10).
    """

    file_id: str
    kind: FileKind
    size: int
    created: int
    crc32: int
    source: str


class Expected(NamedTuple):
    """What the content of a file has to be."""

    size: int
    crc32: int


class ReadPlans:
    """Plans that read, with *trackers* that know who has what."""

    def __init__(self, trackers: TrackerPlans) -> None:
        self.trackers = trackers

    # --- content ---------------------------------------------------------------------------------

    def download(
        self, file_id: str, offset: int, count: int | None, *, verify: bool
    ) -> Plan[bytes]:
        """*count* bytes from *offset* on (None: to the end), fewer at the end of the file."""
        group, name = split_file_id(file_id)
        check_range(offset, count, verify)
        known = _immutable(name)
        likely = count if count is not None else known.size if known else 0
        if 0 < likely <= _WHOLE_MAX:
            content = yield from self._download_whole(group, name, offset, count)
            if verify:
                expected = yield from self.expected(file_id)
                _check_content(file_id, expected, len(content), isal_zlib.crc32(content))
            return content
        chunks: list[bytes] = []
        yield from self.stream(file_id, offset, count, verify=verify, take=chunks.append)
        return b"".join(chunks)

    def stream(
        self,
        file_id: str,
        offset: int,
        count: int | None,
        *,
        verify: bool,
        done: int = 0,
        crc32: int = 0,
        chunk_size: int = CHUNK_SIZE,
        take: Callable[[bytes], object] | None = None,
    ) -> Plan[int]:
        """Deliver *count* bytes from *offset* on (None: to the end); how many there were.

        A download that breaks off goes on where it was, with another storage or the same one, for
        as long as every round brings something.

        Args:
            done: bytes from *offset* on that are there already; *crc32* is their CRC-32.
            take: takes the chunks instead of `Deliver`, for the memory.
        """
        group, name = split_file_id(file_id)
        check_range(offset, count, verify)
        expected = (yield from self.expected(file_id)) if verify else None

        def attempt(address: Address) -> Plan[None]:
            nonlocal done, crc32
            if count is not None and done == count:
                return
            left = count - done if count is not None else 0
            head = Download(group, name, offset + done, left).encode()
            incoming = yield Open(address, StorageCommand.DOWNLOAD, head, repeatable=True)
            try:
                if take is not None and done + incoming.remaining > MEMORY_MAX:
                    raise UsageError(
                        f"{file_id} has {done + incoming.remaining} bytes: too many for the memory"
                    )
                while incoming.remaining:
                    data: bytes = yield Receive(incoming, chunk_size)
                    if expected is not None:
                        crc32 = isal_zlib.crc32(data, crc32)
                    if take is not None:
                        take(data)
                    else:
                        yield Deliver(data)
                    done += len(data)
            finally:
                incoming.end()

        while True:
            before = done
            try:
                yield from self._read(group, name, attempt)
                break
            except ConnectionProblem:
                if done == before:
                    raise
            except StatusError as exc:
                yield from self._check_behind_end(exc, group, name, offset + done)
                break
        if expected is not None:
            _check_content(file_id, expected, done, crc32)
        return done

    def expected(self, file_id: str) -> Plan[Expected]:
        """Size and CRC-32 of a file: from its id, or from a storage when the id has them not."""
        group, name = split_file_id(file_id)
        known = _immutable(name)
        if known is not None:
            return Expected(known.size, known.crc32)
        info = yield from self._info(group, name, 0)
        return Expected(info.size, info.crc32)

    def _download_whole(self, group: str, name: str, offset: int, count: int | None) -> Plan[bytes]:
        """A download of a few bytes, in one exchange."""
        head = Download(group, name, offset, count or 0).encode()

        def attempt(address: Address) -> Plan[bytes]:
            content: bytes = yield Ask(
                address, StorageCommand.DOWNLOAD, head, count or MEMORY_MAX, repeatable=True
            )
            return content

        try:
            return (yield from self._read(group, name, attempt))
        except StatusError as exc:
            yield from self._check_behind_end(exc, group, name, offset)
            return b""

    def _check_behind_end(
        self, refused: StatusError, group: str, name: str, offset: int
    ) -> Plan[None]:
        """Raise *refused* again unless it means that *offset* is the end of the file or behind.

        Storages refuse such a download with status 22 (wire.md section 5, trap 6).
        """
        if refused.errno != errno.EINVAL:
            raise refused
        if (yield from self._info(group, name, NO_CRC)).size > offset:
            raise refused

    # --- what is known of a file -----------------------------------------------------------------

    def info(self, file_id: str, flags: int) -> Plan[FileDetails]:
        """Describe a file; *flags*: NO_CRC, QUIET_WHEN_MISSING."""
        group, name = split_file_id(file_id)
        found = yield from self._info(group, name, flags)
        try:
            decoded = decode_name(name)
        except ProtocolError:
            return FileDetails(
                file_id, FileKind.SLAVE, found.size, found.mtime, found.crc32, found.source_ip
            )
        source = decoded.source if decoded.source_is_id else found.source_ip or decoded.source
        return FileDetails(file_id, decoded.kind, found.size, found.mtime, found.crc32, source)

    def exists(self, file_id: str) -> Plan[bool]:
        """Whether a storage of the group has the file."""
        group, name = split_file_id(file_id)
        try:
            yield from self._info(group, name, NO_CRC | QUIET_WHEN_MISSING)
        except NotFoundError:
            return False
        return True

    def get_metadata(self, file_id: str) -> Plan[dict[str, str]]:
        """The metadata of a file; {} when it has none."""
        group, name = split_file_id(file_id)
        head = FileRequest(group, name).encode()

        def attempt(address: Address) -> Plan[bytes]:
            text: bytes = yield Ask(
                address, StorageCommand.GET_METADATA, head, METADATA_MAX, repeatable=True
            )
            return text

        try:
            # Metadata is read where it is changed, as the reference client does.
            text = yield from self._read(group, name, attempt, where_changed=True)
        except NotFoundError:
            # "No metadata" and "no file" are the same status (wire.md section 5, trap 7).
            yield from self._info(group, name, NO_CRC)
            return {}
        return {_text(key): _text(value) for key, value in metadata.decode(text)}

    def where_to_change(self, group: str, name: str) -> Plan[Address]:
        """The storage that takes changes of a file."""
        try:
            return (yield from self.trackers.query_update(group, name))
        except NotFoundError as exc:
            raise (yield from self.trackers.no_server(group, "takes changes")) from exc

    # --- helpers ---------------------------------------------------------------------------------

    def _info(self, group: str, name: str, flags: int) -> Plan[FileInfo]:
        return self._read(group, name, lambda address: info_at(address, group, name, flags))

    def _read(
        self,
        group: str,
        name: str,
        attempt: Callable[[Address], Plan[T]],
        *,
        where_changed: bool = False,
    ) -> Plan[T]:
        """Read from the storage that a tracker names, then from any other that has the file.

        A tracker may name one that lacks a file still (load-balancing.md section 4), unless it is
        that *where_changed*.
        """
        if where_changed:
            first = yield from self.where_to_change(group, name)
        else:
            try:
                first = yield from self.trackers.query_fetch(group, name)
            except NotFoundError as exc:
                raise (yield from self.trackers.no_server(group, "can be read from")) from exc
        try:
            return (yield from attempt(first))
        except NotFoundError as exc:
            if where_changed:
                raise
            problem: FdfsError = exc
        except ConnectionProblem as exc:
            problem = exc
        for address in (yield from self._other_servers(group, name, first)):
            try:
                return (yield from attempt(address))
            except ConnectionProblem:
                continue
            except NotFoundError:
                if where_changed:
                    raise
        raise problem

    def _other_servers(self, group: str, name: str, tried: Address) -> Plan[list[Address]]:
        try:
            found = yield from self.trackers.query_fetch_all(group, name)
            found.append((yield from self.trackers.query_update(group, name)))
        except (ConnectionProblem, StatusError):
            return []
        return [address for address in dict.fromkeys(found) if address != tried]


def info_at(address: Address, group: str, name: str, flags: int) -> Plan[FileInfo]:
    """What the storage at *address* says of a file (22)."""
    head = FileRequest(group, name).encode()
    body = yield Ask(address, StorageCommand.FILE_INFO, head, _INFO_MAX, flags, repeatable=True)
    return FileInfo.decode(body)


def check_range(offset: int, count: int | None, verify: bool) -> None:
    """Raise UsageError for a range that makes no sense."""
    if offset < 0 or (count is not None and count < 0):
        raise UsageError(f"{count} bytes from {offset} on are not a part of a file")
    if verify and (offset or count is not None):
        raise UsageError("only whole files can be verified")


def is_immutable(file_id: str) -> bool:
    """Whether the id tells size and CRC-32 of a file, so that its content never changes."""
    return _immutable(split_file_id(file_id)[1]) is not None


def _immutable(name: str) -> NameInfo | None:
    """What the name says of the content of a normal file; None for other kinds.

    A slave whose name is as short as a normal one (wire.md section 5, trap 10) carries the size
    of its master; all but those with a prefix of digits are told by their last 7 characters.
    """
    try:
        info = decode_name(name)
    except ProtocolError:
        return None
    if info.kind is not FileKind.NORMAL or not (info.in_trunk or _MADE_SUFFIX.match(name[37:])):
        return None
    return info


def _check_content(file_id: str, expected: Expected, size: int, crc32: int) -> None:
    if size != expected.size:
        raise IntegrityError(f"{file_id} has {expected.size} bytes, but {size} came")
    if crc32 != expected.crc32:
        raise IntegrityError(f"{file_id} has the CRC-32 {expected.crc32:08x}, but {crc32:08x} came")


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")
