"""Recovery of a lost disk: a store path that came back empty gets its files from another member.

Source: protocol/cluster.md section 7. It runs before this storage serves and joins:

1. Nobody else has the files, or the disk is not mounted: refuse to start.
2. ``.recovery.flag`` is written, so that a crash from here on does not forget that files are
   missing.
3. Trackers are told that this storage is in RECOVERY (76).
4. A member sends the list of the files of this store path (26), which is kept on the disk.
5. Every file of it is fetched (14) under a temporary name, compared with what its name promises,
   and renamed. A mark tells how far this has come; after a crash, or with another source when one
   fails, it goes on from there.
6. The files of the recovery are removed. The storage joins, which ends RECOVERY; peers send what
   has changed meanwhile, because their marks have not moved.

Nothing is written to the binlog: it is in base_path and has these files already. Files that were
deleted here are not fetched: the member that sends them has not heard of it yet.
"""

from __future__ import annotations

import errno
import itertools
import logging
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import trio

from fdfs_storage import directories
from fdfs_storage.binlog import Binlog
from fdfs_storage.cluster.identity import Identity
from fdfs_storage.cluster.place import Place
from fdfs_storage.cluster.recovery_files import RecoveryFiles
from fdfs_storage.cluster.tracker_link import Retry, ask_all, highest_status
from fdfs_storage.files import unlink_quietly
from fdfs_storage.replication.deleted import names_deleted
from fdfs_storage.transfer import file_crc32
from fdfsfuse.client.address import Address
from fdfsfuse.client.connection import connect
from fdfsfuse.client.link import PROBLEMS
from fdfsfuse.client.pool import Pool
from fdfsfuse.client.storage import StorageClient
from fdfsfuse.client.tracker import TrackerClient
from fdfsfuse.core.config import StorageConfig
from fdfsfuse.core.recovery import Content, Way, choose_source, choose_way, promised_content
from fdfsfuse.core.replicas import stays_deleted, subject_of
from fdfsfuse.errors import (
    ConfigError,
    ConnectionBroken,
    ConnectionProblem,
    DeadlineExceeded,
    FdfsError,
    ProtocolError,
    StatusError,
)
from fdfsfuse.proto import binlog as ops
from fdfsfuse.proto.binlog import BinlogRecord, decode_line
from fdfsfuse.proto.cluster import Brief, ClusterCommand, StatusReport
from fdfsfuse.proto.fileid import Location, parse_location
from fdfsfuse.proto.recovery import (
    COUNT_SIZE,
    FETCH_PATH_BINLOG,
    PathBinlogRequest,
    RecoveryFlag,
)
from fdfsfuse.proto.storage import NO_CRC
from fdfsfuse.proto.tracker import ServerStatus, StorageStat
from fdfsfuse.proto.trunk import find_slot

logger = logging.getLogger(__name__)

_MAX_RETRY_S = 5.0
_LIST_WAIT_S = 600.0
"""A source looks at each of its files before the list is complete."""
_FETCHERS = 4
_BATCH = 500
"""Files between two marks."""


@contextmanager
def _patience(source: Address, limit_s: float) -> Iterator[Callable[[], None]]:
    """Wait for a source no longer than *limit_s* after each call of what this gives.

    Raises:
        DeadlineExceeded: it was silent for longer.
    """
    with trio.move_on_after(limit_s) as scope:

        def heard() -> None:
            scope.deadline = trio.current_time() + limit_s

        yield heard
    if scope.cancelled_caught:
        raise DeadlineExceeded(f"{source} has sent nothing for {limit_s:g} s")


class _NobodyThere(FdfsError):
    """No member can send files now."""


class DiskRecovery:
    """Brings back what lost store paths had; see the module.

    Args:
        port: where this storage listens.
        say: told in words how far it is, for people.
    """

    def __init__(
        self,
        config: StorageConfig,
        identity: Identity,
        place: Place,
        port: int,
        say: Callable[[str], None],
    ) -> None:
        self._config = config
        self._identity = identity
        self._place = place
        self._port = port
        self._say = say
        self._turn = 0

    async def run(self) -> bool:
        """Return True when every store path has its files. Waits for members as long as it takes.

        Raises:
            ConfigError: nobody else has the files, or the disk is not mounted.
            OSError: the own disk failed.
        """
        paths = [path.path for path in self._config.store_paths]
        lost = self._identity.lost_paths(paths, marked_only=self._config.check_store_path_mark)
        for index, store_path in enumerate(paths):
            files = RecoveryFiles(store_path)
            if index in lost or files.under_way:
                logger.warning("%s: store path %d has lost its files", store_path, index)
                async with Pool() as pool:
                    await self._recover(index, files, pool)
        return True

    async def _recover(self, index: int, files: RecoveryFiles, pool: Pool) -> None:
        retry = Retry(_MAX_RETRY_S)
        last = ""
        while True:
            try:
                way, members = await self._look(index, pool)
                if way is Way.REFUSE:
                    raise ConfigError(self._identity.lost_text(index, str(files.data.parent)))
                if way is Way.RECOVER:
                    return await self._recover_from(members, index, files, pool)
                if way is Way.JOIN_AS_NEW:
                    await trio.to_thread.run_sync(self._identity.reopen_source, None)
                if files.under_way:
                    await trio.to_thread.run_sync(files.end)
                return None
            except (*PROBLEMS, _NobodyThere) as exc:
                self._turn += 1
                if str(exc) != last:
                    last = str(exc)
                    logger.warning("the recovery waits: %s", last)
                    self._say(f"the recovery of store path {index} waits: {last}")
            await trio.sleep(retry.next_delay())

    async def _look(self, index: int, pool: Pool) -> tuple[Way, list[StorageStat]]:
        trackers = [
            Address(host, server.port)
            for server in self._config.tracker_servers
            for host in server.hosts
        ]
        members = await TrackerClient(trackers, pool).list_storages(self._config.group_name)
        status = await highest_status(self._config, self._place.my_ip, self._port)
        return choose_way(status, members, self._place.storage_id, index), members

    async def _recover_from(
        self, members: list[StorageStat], index: int, files: RecoveryFiles, pool: Pool
    ) -> None:
        if not files.under_way:
            await trio.to_thread.run_sync(files.begin)
        await self._report_recovery()
        source = choose_source(members, self._place.storage_id, self._turn)
        if source is None:
            raise _NobodyThere(f"no other storage of {self._config.group_name} is active")
        address = Address(source.ip, source.storage_port)
        flag = files.read_flag()
        if not flag.list_done:
            logger.info("fetching the list of store path %d from %s", index, address)
            await self._fetch_list(address, index, files)
            flag = RecoveryFlag(flag.saved_status, True, 1)
            await trio.to_thread.run_sync(files.write_flag, flag)
        store_path = self._config.store_paths[index].path
        await trio.to_thread.run_sync(
            directories.prepare, store_path, self._config.subdir_count_per_path
        )
        deleted = await trio.to_thread.run_sync(_read_deleted, self._config.base_path)
        fetch = _Fetch(self._config, StorageClient(pool, address), index, files.data, deleted)
        for part in range(flag.parts):
            await self._fetch_part(fetch, index, files, part)
        await trio.to_thread.run_sync(files.end)
        logger.info("store path %d has its files again", index)

    async def _report_recovery(self) -> None:
        place = self._place
        brief = Brief(ServerStatus.RECOVERY, self._port, place.storage_id, place.my_ip)
        body = StatusReport(self._config.group_name, brief).encode()
        await ask_all(self._config, ClusterCommand.REPORT_STATUS, body)

    async def _fetch_list(self, address: Address, index: int, files: RecoveryFiles) -> None:
        """26: the answer ends with the length of its text, and with the connection."""
        body = PathBinlogRequest(self._config.group_name, index).encode()
        connection = await connect(address)
        with files.open_list() as file:
            try:
                stream = await connection.start_stream(FETCH_PATH_BINLOG, body)
                tail, count = b"", 0
                with suppress(ConnectionBroken), _patience(address, _LIST_WAIT_S) as heard:
                    while data := await stream.receive_some():
                        heard()
                        text, tail = (tail + data)[:-COUNT_SIZE], (tail + data)[-COUNT_SIZE:]
                        count += len(text)
                        await trio.to_thread.run_sync(file.write, text)
            finally:
                connection.close()
            if len(tail) != COUNT_SIZE or struct.unpack(">q", tail)[0] != count:
                raise ProtocolError(f"the list that {address} sent is not complete")
            file.flush()
            await trio.to_thread.run_sync(os.fsync, file.fileno())

    async def _fetch_part(self, fetch: _Fetch, index: int, files: RecoveryFiles, part: int) -> None:
        """Fetch the files of a part of the list, from where the last run ended."""
        lines = files.lines(part, files.read_mark(part))
        total = files.list_path(part).stat().st_size
        while batch := list(itertools.islice(lines, _BATCH)):
            rest = iter(batch)
            async with trio.open_nursery() as nursery:
                for _ in range(_FETCHERS):
                    nursery.start_soon(fetch.run, rest)
            if fetch.problem is not None:
                raise fetch.problem
            offset = batch[-1][1]
            await trio.to_thread.run_sync(files.write_mark, part, offset)
            done = f"{100 * offset // total} % of the files of store path {index}"
            self._say(f"recovery from {fetch.source.address}: {done}")
            logger.info("recovery: %s", done)


def _read_deleted(base_path: str) -> dict[str, int]:
    binlog = Binlog.open(Path(base_path))
    try:
        return names_deleted(binlog)
    finally:
        binlog.close()


class _Fetch:
    """Fetches files of store path *index* from *source* into *data*, the directory for them.

    *deleted*: names that were deleted here, with the time of it.
    """

    def __init__(
        self,
        config: StorageConfig,
        source: StorageClient,
        index: int,
        data: Path,
        deleted: dict[str, int],
    ) -> None:
        self.source = source
        self.problem: Exception | None = None
        self._group = config.group_name
        self._timeout_s = config.network_timeout_s
        self._store_paths = [path.path for path in config.store_paths]
        self._index = index
        self._data = data
        self._deleted = deleted
        self._numbers = itertools.count()
        self._trunk_files: set[str] = set()

    async def run(self, lines: Iterator[tuple[bytes, int]]) -> None:
        """Fetch what *lines*, shared with other tasks, still have.

        What the source does not have any more is skipped, and so is what cannot be right. Ends
        early when there is a `problem`: the source does not answer, or the own disk failed.
        """
        for line, _ in lines:
            if self.problem is not None:
                return
            try:
                await self._fetch(decode_line(line))
            except StatusError as exc:
                if exc.errno != errno.ENOENT:
                    logger.error("%r is not recovered: %s", line[:300], exc)
            except ProtocolError as exc:
                logger.error("%r is not recovered: %s", line[:300], exc)
            except (ConnectionProblem, OSError) as exc:
                self.problem = exc

    async def _fetch(self, record: BinlogRecord) -> None:
        location = parse_location(record.name, len(self._store_paths))
        if location.path_index != self._index or record.op.upper() not in (ops.CREATE, ops.LINK):
            raise ProtocolError(f"it is not in a list of store path {self._index}")
        nature, deleted_at = subject_of(location.name).nature, self._deleted.get(location.name)
        if stays_deleted(nature, record.timestamp, deleted_at, elsewhere=True):
            return
        slot = find_slot(location)
        if slot is not None:
            # All files of a trunk file come at once, as that file.
            location = Location(self._index, f"{location.directory}/{slot.file_name}")
            if location.name in self._trunk_files:
                return
            self._trunk_files.add(location.name)
        temporary = f"{self._data}/{directories.TEMPORARY_PREFIX}recovery-{next(self._numbers)}"
        try:
            if record.op.upper() == ops.LINK:
                self._make_link(record, temporary)
            else:
                await self._fetch_content(record, location, temporary)
            path = self._data / location.relative
            path.parent.mkdir(parents=True, exist_ok=True)
            os.rename(temporary, path)
        finally:
            unlink_quietly(temporary)

    def _make_link(self, record: BinlogRecord, temporary: str) -> None:
        target = parse_location(record.other_name, len(self._store_paths))
        os.symlink(f"{self._store_paths[target.path_index]}/data/{target.relative}", temporary)

    async def _fetch_content(
        self, record: BinlogRecord, location: Location, temporary: str
    ) -> None:
        fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            try:
                with _patience(self.source.address, self._timeout_s) as heard:
                    size = await self.source.download_to_file(
                        self._group, location.name, fd, progress=lambda _count: heard()
                    )
            except StatusError as exc:
                if exc.errno != errno.EINVAL:
                    raise
                # An empty file cannot be downloaded (wire.md section 4, command 14).
                info = await self.source.query_info(self._group, location.name, flags=NO_CRC)
                if info.size:
                    raise
                size = 0
            promised = promised_content(location.name)
            if promised is not None:
                crc32 = await trio.to_thread.run_sync(file_crc32, temporary)
                if promised != Content(size, crc32):
                    raise ProtocolError(
                        f"{self.source.address} has other content than its name says"
                    )
            os.utime(fd, (record.timestamp, record.timestamp))
        finally:
            os.close(fd)
