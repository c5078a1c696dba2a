"""Who this storage is: ``base_path/data/.data_init_flag`` and the marks of the store paths.

Source: protocol/disk.md sections 2 and 3. Both files stay readable for a C server, and what a C
server wrote is kept.
"""

from __future__ import annotations

import base64
import logging
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fdfsfuse.errors import ConfigError
from fdfsfuse.proto.cluster import SyncSource

logger = logging.getLogger(__name__)

FLAG_NAME = ".data_init_flag"
MARK_NAME = ".fastdfs_vars"
_MARK = struct.Struct("<46sHB3xI")
_MARK_KEY = "store_path_mark"
_OWN_DISK_KEY = "store_path_own_disk"
"""A key that only we use; a C server drops it, and then nothing is known of the disk."""
_MAX_FILE_BYTES = 1 << 20


def write_file_durably(path: Path, data: bytes) -> None:
    """Replace *path*: after a crash it holds either the old or the new content, never a part."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())  # else the rename could survive a power loss and the data not
    os.replace(temporary, path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)  # else the old file could come back, e.g. with sync_old_done=0
    finally:
        os.close(directory)


def _parse_ini(data: bytes) -> dict[str, str]:
    values: dict[str, str] = {}
    for line in data.decode("utf-8", "surrogateescape").splitlines():
        key, separator, value = line.partition("=")
        if separator and not line.lstrip().startswith(("#", "[")):
            values[key.strip()] = value.strip()
    return values


def make_mark(ip: str, port: int, path_index: int, now_s: int) -> str:
    """The text of a store path mark: 75 base64 characters. Only its equality matters."""
    raw = _MARK.pack(ip.encode("ascii"), port, path_index, now_s)
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode("ascii")


@dataclass(slots=True)
class Identity:
    """The content of ``.data_init_flag``. Not thread-safe: one task changes and saves it.

    ``join_time`` is the first start of this storage ever, Unix seconds. ``sync_old_done`` tells
    that it has been decided (not: finished) who sends the initial copy. ``others`` are keys that
    we do not use and keep.
    """

    path: Path
    join_time: int
    sync_old_done: bool = False
    sync_src_server: str = ""
    sync_until_timestamp: int = 0
    last_ip_addr: str = ""
    last_server_port: int = 0
    marks: dict[int, str] = field(default_factory=dict)
    others: dict[str, str] = field(default_factory=dict)

    @classmethod
    def load(cls, base_path: str | Path, now_s: int) -> Identity:
        """Read the file below *base_path*, or make a new one (a new storage).

        Raises:
            ConfigError: the file is there but malformed.
            OSError: it cannot be read or written.
        """
        path = Path(base_path) / "data" / FLAG_NAME
        try:
            with open(path, "rb") as file:
                values = _parse_ini(file.read(_MAX_FILE_BYTES))
        except FileNotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True)
            identity = cls(path, now_s)
            identity.save()
            return identity
        try:
            identity = cls(
                path,
                join_time=int(values.pop("storage_join_time")),
                sync_old_done=values.pop("sync_old_done") == "1",
                sync_src_server=values.pop("sync_src_server"),
                sync_until_timestamp=int(values.pop("sync_until_timestamp", "") or 0),
                last_ip_addr=values.pop("last_ip_addr", ""),
                last_server_port=int(values.pop("last_server_port", "") or 0),
            )
            for key in [key for key in values if key.startswith(_MARK_KEY)]:
                identity.marks[int(key[len(_MARK_KEY) :])] = values.pop(key)
        except (KeyError, ValueError) as exc:
            raise ConfigError(
                f"{path}: {exc} is missing or malformed. This file tells which storage the data "
                "belong to; restore it, do not delete it"
            ) from exc
        identity.others = values
        return identity

    @property
    def source(self) -> SyncSource:
        """Who sends the initial copy, as commands 87 and 88 carry it."""
        return SyncSource(self.sync_src_server, self.sync_until_timestamp)

    def decide_source(self, source: SyncSource | None) -> None:
        """Note that the source of the initial copy is decided, and save that."""
        source = source or SyncSource()
        self.sync_old_done = True
        self.sync_src_server = source.source_id
        self.sync_until_timestamp = source.until
        self.save()

    def replace_source(self, source_id: str) -> None:
        """Note that the source of the initial copy goes by another id now, '' for none; save."""
        self.sync_src_server = source_id
        if not source_id:
            self.sync_until_timestamp = 0
        self.save()

    def reopen_source(self, source: SyncSource | None) -> None:
        """Note that the source of the initial copy has to be decided again, and save that."""
        source = source or SyncSource()
        self.sync_old_done = False
        self.sync_src_server = source.source_id
        self.sync_until_timestamp = source.until
        self.save()

    def save(self) -> None:
        """Write the file so that a crash leaves the old or the new one."""
        values = {
            "storage_join_time": str(self.join_time),
            "sync_old_done": str(int(self.sync_old_done)),
            "sync_src_server": self.sync_src_server,
            "sync_until_timestamp": str(self.sync_until_timestamp),
            "last_ip_addr": self.last_ip_addr,
            "last_server_port": str(self.last_server_port),
            **self.others,
            **{f"{_MARK_KEY}{index}": mark for index, mark in sorted(self.marks.items())},
        }
        text = "".join(f"{key}={value}\n" for key, value in values.items())
        write_file_durably(self.path, text.encode("utf-8", "surrogateescape"))

    def check_marks(self, store_paths: Sequence[str], ip: str, port: int, now_s: int) -> None:
        """Compare the marks of all store paths with ours, and mark new ones.

        To be called before the store creates its directories, with the address that names carry.
        A swapped, foreign or unmounted disk is refused: files would be served or created at the
        wrong place. (A C server goes on with an empty disk, as it would then refill it.)

        Raises:
            ConfigError: a store path belongs to another storage or index, or lost its data.
        """
        for index, store_path in enumerate(store_paths):
            mark_path = Path(store_path) / "data" / MARK_NAME
            known, found = self.marks.get(index), _read_mark(mark_path)
            if found is not None and found != known:
                raise ConfigError(
                    f"{mark_path}: store path {index} carries the mark of another storage or "
                    f"store path. Check store_path{index} and base_path (marks: {self.path})"
                )
            if found is not None:
                continue
            if known is not None and self.sync_old_done and not _has_data(mark_path.parent):
                raise ConfigError(self.lost_text(index, store_path))
            if known is not None:
                logger.warning("%s: the mark was missing and is written again", mark_path)
            mark = make_mark(ip, port, index, now_s)
            # Ours first: a crash in between leaves a disk without a mark, which gets one again;
            # the other way round would leave a mark that we do not know, which is refused.
            self.marks[index] = mark
            self.save()
            mark_path.parent.mkdir(parents=True, exist_ok=True)
            write_file_durably(mark_path, f"{_MARK_KEY}={mark}\n".encode("ascii"))

    def lost_paths(self, store_paths: Sequence[str], *, marked_only: bool) -> list[int]:
        """Store paths that had files and have none: new disks, which another member can fill.

        With *marked_only* only those count that we have marked, else all of a storage that has
        been a member before.

        Raises:
            ConfigError: a disk is not mounted.
        """
        lost: list[int] = []
        if not self.sync_old_done:
            return lost
        for index, store_path in enumerate(store_paths):
            if _has_data(Path(store_path, "data")) or (marked_only and index not in self.marks):
                continue
            if self.others.get(f"{_OWN_DISK_KEY}{index}") == "1" and not _has_own_disk(store_path):
                # Not to be taken for a new disk: the system's disk would be filled.
                raise ConfigError(
                    f"{store_path}: store path {index} was a disk of its own, which is not "
                    f"mounted. If it shall be here, remove {_OWN_DISK_KEY}{index} from {self.path}"
                )
            lost.append(index)
        return lost

    def lost_text(self, index: int, store_path: str) -> str:
        """What to say of a store path that lost its files, which nobody else has."""
        return (
            f"{store_path}: store path {index} has lost its files: is the disk mounted? "
            f"If it is empty on purpose, remove {_MARK_KEY}{index} from {self.path}"
        )

    def note_disks(self, store_paths: Sequence[str]) -> None:
        """Remember which store paths are on disks of their own; saved when that changed."""
        noted = {
            f"{_OWN_DISK_KEY}{index}": str(int(_has_own_disk(path)))
            for index, path in enumerate(store_paths)
        }
        if not noted.items() <= self.others.items():
            self.others.update(noted)
            self.save()


def _has_own_disk(path: str) -> bool:
    return os.stat(path).st_dev != os.stat("/").st_dev


def _read_mark(path: Path) -> str | None:
    try:
        with open(path, "rb") as file:
            return _parse_ini(file.read(4096)).get(_MARK_KEY, "")
    except FileNotFoundError:
        return None


def _has_data(data: Path) -> bool:
    """True when the directory has at least the first sub directory that every storage makes."""
    return (data / "00").is_dir()
