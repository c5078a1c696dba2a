"""Plans that store and change files.

A change is sent to one storage only, once: when its connection breaks after the storage may have
got all of it, ConnectionBroken says that nobody knows. Uploads go to another storage as long as it
is certain that the one before has not carried them out.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping

from fdfsfuse.client.address import Address
from fdfsfuse.client.plans.reading import ReadPlans
from fdfsfuse.client.plans.steps import SKIP, Ask, Plan, Send
from fdfsfuse.client.plans.trackers import TrackerPlans
from fdfsfuse.client.sources import Opened, extension_of
from fdfsfuse.errors import (
    ConnectFailed,
    ConnectionBroken,
    ConnectionProblem,
    FdfsError,
    NotFoundError,
    ProtocolError,
    StatusError,
    TooFewCopiesError,
    UsageError,
)
from fdfsfuse.proto import copies, structs
from fdfsfuse.proto.derived import SIGNATURE_MAX, CreateLink, Regenerate
from fdfsfuse.proto.fileid import EXTENSION, PREFIX, FileKind, decode_name, split_file_id
from fdfsfuse.proto.header import FILE_NAME_MAX, GROUP_NAME_SIZE
from fdfsfuse.proto.metadata import NAME_MAX, VALUE_MAX, encode, fits
from fdfsfuse.proto.storage import (
    AppendHead,
    FileRequest,
    ModifyHead,
    SetMetadata,
    SlaveHead,
    StorageCommand,
    StoredFile,
    Truncate,
    UploadHead,
)
from fdfsfuse.proto.tracker import MAX_SERVERS_PER_GROUP

CLEANUP_TIMEOUT_S = 5.0
"""How long removing a file may take whose metadata could not be stored."""

COPIES_WAIT_S = 2.0
COPIES_TRIES = 15
"""An upload with replicas waits for them this many times this long."""

_UPLOAD_TRIES = 3
_NAME_MAX = GROUP_NAME_SIZE + FILE_NAME_MAX


class ChangePlans:
    """Plans that change something; *reading* knows who takes changes."""

    def __init__(self, trackers: TrackerPlans, reading: ReadPlans) -> None:
        self.trackers = trackers
        self._where_to_change = reading.where_to_change

    # --- new files -------------------------------------------------------------------------------

    def upload(
        self,
        opened: Opened,
        extension: str,
        group: str | None,
        metadata: Mapping[str, str] | None,
        *,
        appender: bool,
        replicas: int,
    ) -> Plan[str]:
        """Store a new file, on *replicas* servers; its id."""
        if not 1 <= replicas <= MAX_SERVERS_PER_GROUP:
            raise UsageError(f"{replicas} replicas: a group has 1 to {MAX_SERVERS_PER_GROUP}")
        if not EXTENSION.match(extension):
            raise UsageError(f"{extension!r} is not an extension: at most 6 of A-Z a-z 0-9 . _ -")
        text = metadata_text(metadata) if metadata else b""
        command = StorageCommand.UPLOAD_APPENDER if appender else StorageCommand.UPLOAD
        address, answer = yield from self._upload(group, command, extension, opened)
        stored = StoredFile.decode(answer)
        if text:
            yield from self._add_metadata(address, stored, text)
        file_id = _file_id(stored)
        if replicas > 1:
            yield from self._wait_for_copies(address, file_id, replicas)
        return file_id

    def _wait_for_copies(self, address: Address, file_id: str, wanted: int) -> Plan[None]:
        """Wait until *wanted* servers have what was uploaded to *address*.

        Asked for a short while at a time, since an answer counts as progress.
        """
        group, name = split_file_id(file_id)
        body = structs.encode(copies.WaitForCopies(group, name, wanted, COPIES_WAIT_S))
        count = 1
        try:
            for _ in range(COPIES_TRIES):
                step = Ask(address, copies.WAIT_FOR_COPIES, body, repeatable=True)
                count = structs.decode(copies.Copies, (yield step)).count
                if count >= wanted:
                    return
        except StatusError as exc:
            if exc.errno != errno.EINVAL:
                raise TooFewCopiesError(file_id, count, wanted, str(exc)) from exc
            why = "its server is a stock FastDFS storage, which cannot tell"
            raise TooFewCopiesError(file_id, count, wanted, why) from exc
        except (ConnectionProblem, ProtocolError) as exc:
            raise TooFewCopiesError(file_id, count, wanted, str(exc)) from exc
        why = f"no more came within {COPIES_TRIES * COPIES_WAIT_S:g} s"
        raise TooFewCopiesError(file_id, count, wanted, why)

    def upload_slave(
        self,
        master_id: str,
        prefix: str,
        opened: Opened,
        extension: str | None,
        metadata: Mapping[str, str] | None,
    ) -> Plan[str]:
        """Store a slave; its id."""
        if not PREFIX.match(prefix):
            raise UsageError(f"{prefix!r} is not a prefix: 1 to 16 of A-Z a-z 0-9 . _ -")
        group, master = split_file_id(master_id)
        if extension is None:
            extension = extension_of(master)
        text = metadata_text(metadata) if metadata else b""
        head = SlaveHead(master, opened.size, prefix, extension).encode()
        address = yield from self._where_to_change(group, master)
        answer = yield Send(
            address,
            StorageCommand.UPLOAD_SLAVE,
            head,
            _NAME_MAX,
            source=opened.source,
            size=opened.size,
        )
        stored = StoredFile.decode(answer)
        if text:
            yield from self._add_metadata(address, stored, text)
        return _file_id(stored)

    def regenerate(self, file_id: str) -> Plan[str]:
        """Make an appender a normal file; its new id."""
        group, name = _split_appender(file_id)
        address = yield from self._where_to_change(group, name)
        return (yield from self._rename(address, StorageCommand.REGENERATE, Regenerate(name)))

    def link(self, file_id: str, signature: bytes, extension: str | None) -> Plan[str]:
        """Give a file a further id."""
        if not 0 < len(signature) <= SIGNATURE_MAX:
            raise UsageError(f"a signature has 1 to {SIGNATURE_MAX} bytes")
        group, name = split_file_id(file_id)
        if extension is None:
            extension = extension_of(name)
        address = yield from self._where_to_change(group, name)
        request = CreateLink(group, name, signature, extension)
        return (yield from self._rename(address, StorageCommand.CREATE_LINK, request))

    def _rename(
        self, address: Address, command: int, request: Regenerate | CreateLink
    ) -> Plan[str]:
        answer = yield Ask(address, command, request.encode(), _NAME_MAX)
        return _file_id(StoredFile.decode(answer))

    def _upload(
        self, group: str | None, command: StorageCommand, extension: str, opened: Opened
    ) -> Plan[tuple[Address, bytes]]:
        """Upload to the storage that a tracker names; to another one if that cannot be reached."""
        failed: dict[Address, ConnectionProblem] = {}
        for _ in range(_UPLOAD_TRIES):
            try:
                target = yield from self.trackers.query_store(group)
            except NotFoundError as exc:
                raise (yield from self.trackers.no_server(group, "takes uploads")) from exc
            if target.address in failed:
                others = yield from self.trackers.query_store_all(target.group)
                target = next((t for t in others if t.address not in failed), target)
                if target.address in failed:
                    raise failed[target.address]
            head = UploadHead(target.path_index, opened.size, extension).encode()
            step = Send(
                target.address, command, head, _NAME_MAX, source=opened.source, size=opened.size
            )
            try:
                return target.address, (yield step)
            except ConnectFailed as exc:
                failed[target.address] = exc
            except ConnectionBroken as exc:
                if not (exc.unsent and step.replayable):
                    raise
                failed[target.address] = exc
        raise failed[target.address]

    def _add_metadata(self, address: Address, stored: StoredFile, text: bytes) -> Plan[None]:
        """Store the metadata of a new file; the file is deleted again if that fails."""
        body = SetMetadata(stored.group, stored.name, text).encode()
        try:
            yield Ask(address, StorageCommand.SET_METADATA, body, SKIP)
        except FdfsError:
            body = FileRequest(stored.group, stored.name).encode()
            try:
                yield Ask(address, StorageCommand.DELETE, body, SKIP, limit_s=CLEANUP_TIMEOUT_S)
            except FdfsError:
                pass  # the first error tells more
            raise

    # --- existing files --------------------------------------------------------------------------

    def set_metadata(self, file_id: str, metadata: Mapping[str, str], *, merge: bool) -> Plan[None]:
        """Replace the metadata, or with *merge* add to it."""
        group, name = split_file_id(file_id)
        body = SetMetadata(group, name, metadata_text(metadata), merge).encode()
        address = yield from self._where_to_change(group, name)
        yield Ask(address, StorageCommand.SET_METADATA, body, SKIP)

    def delete(self, file_id: str) -> Plan[None]:
        """Delete a file and its metadata."""
        group, name = split_file_id(file_id)
        address = yield from self._where_to_change(group, name)
        yield Ask(address, StorageCommand.DELETE, FileRequest(group, name).encode(), SKIP)

    def append(self, file_id: str, opened: Opened) -> Plan[None]:
        """Append to an appender."""
        group, name = _split_appender(file_id)
        address = yield from self._where_to_change(group, name)
        head = AppendHead(name, opened.size).encode()
        yield _send(address, StorageCommand.APPEND, head, opened)

    def modify(self, file_id: str, offset: int, opened: Opened) -> Plan[None]:
        """Overwrite a part of an appender."""
        group, name = _split_appender(file_id)
        if offset < 0:
            raise UsageError(f"{offset} is not an offset")
        address = yield from self._where_to_change(group, name)
        head = ModifyHead(name, offset, opened.size).encode()
        yield _send(address, StorageCommand.MODIFY, head, opened)

    def truncate(self, file_id: str, size: int) -> Plan[None]:
        """Set the size of an appender."""
        group, name = _split_appender(file_id)
        if size < 0:
            raise UsageError(f"{size} is not a size")
        address = yield from self._where_to_change(group, name)
        yield Ask(address, StorageCommand.TRUNCATE, Truncate(name, size).encode(), SKIP)


def _send(address: Address, command: int, head: bytes, opened: Opened) -> Send:
    return Send(address, command, head, SKIP, source=opened.source, size=opened.size)


def metadata_text(metadata: Mapping[str, str]) -> bytes:
    """The text that stores *metadata*. Raises UsageError when a pair does not fit."""
    pairs = []
    for key, value in metadata.items():
        pair = _bytes(key), _bytes(value)
        if not fits(*pair):
            raise UsageError(
                f"metadata {key!r} does not fit: names have 1 to {NAME_MAX} bytes, values "
                f"at most {VALUE_MAX}, without the bytes 0, 1 and 2"
            )
        pairs.append(pair)
    return encode(pairs)


def _split_appender(file_id: str) -> tuple[str, str]:
    group, name = split_file_id(file_id)
    try:
        kind = decode_name(name).kind
    except ProtocolError:
        kind = FileKind.NORMAL
    if kind is not FileKind.APPENDER:
        raise UsageError(f"{file_id} is not an appender: only a file uploaded as one can change")
    return group, name


def _file_id(stored: StoredFile) -> str:
    return f"{stored.group}/{stored.name}"


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
