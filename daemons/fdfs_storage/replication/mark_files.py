"""Files in ``base_path/data/sync`` that tell how far each peer has come.

``*.mark`` are FastDFS's (protocol/disk.md section 6). Beside each is a file of ours, ``*.boot``:
the boot id of the peer's machine, and a position that the peer had acknowledged long before the
file was written, so that it is on the peer's disk even if its machine lost its power since.
"""

from __future__ import annotations

import json
import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path

from fdfs_storage.binlog import BinlogPosition
from fdfs_storage.files import replace_file
from fdfs_storage.replication.unreadable import Unreadable
from fdfsfuse.errors import ProtocolError
from fdfsfuse.proto.mark import MARK_SUFFIX, Mark, mark_name

logger = logging.getLogger(__name__)


_BOOT_SUFFIX = ".boot"
_UNREADABLE_SUFFIX = ".unreadable"
_OUR_SUFFIXES = (_BOOT_SUFFIX, _UNREADABLE_SUFFIX)
"""Files that FastDFS does not have."""
_BEGIN = BinlogPosition(0, 0)


@dataclass(frozen=True, slots=True)
class BootNote:
    """``boot_id`` of the peer's machine, and what it has for sure in that case.

    ``again_until``: records before this position had been acknowledged when the machine was
    restarted last, so they may be there in part.
    """

    boot_id: str
    safe: BinlogPosition
    again_until: BinlogPosition = _BEGIN


class MarkFiles:
    """The files of one storage. Its methods block; those that write may be called in a thread.

    Args:
        by_id: the cluster uses storage ids.
    """

    def __init__(self, directory: Path, own_port: int, *, by_id: bool) -> None:
        self._directory = directory
        self._own_port = own_port
        self._by_id = by_id

    def path(self, peer_id: str) -> Path:
        """The mark file of a peer."""
        return self._directory / mark_name(peer_id, self._own_port, by_id=self._by_id)

    def take_from_port(self, old_port: int) -> None:
        """This storage listened on another port before, which names of marks by ip carry."""
        if self._by_id or old_port in (0, self._own_port):
            return
        for suffix in (MARK_SUFFIX, *_OUR_SUFFIXES):
            for path in self._directory.glob(f"*_{old_port}{suffix}"):
                peer_id = path.name[: -len(f"_{old_port}{suffix}")]
                path.rename(path.with_name(f"{peer_id}_{self._own_port}{suffix}"))
                logger.info("%s: the port is %d now", path.name, self._own_port)

    def load(self, peer_id: str, peer_ip: str) -> Mark | None:
        """The mark of a peer; None when there is none, or it is damaged. Raises OSError."""
        path = self.path(peer_id)
        if self._by_id and not path.exists():
            # A cluster that has begun to use storage ids.
            old = self._directory / mark_name(peer_ip, self._own_port, by_id=False)
            if old.exists():
                old.rename(path)
        try:
            return Mark.decode(path.read_bytes())
        except FileNotFoundError:
            return None
        except ProtocolError as exc:
            logger.warning("%s: %s; asking the trackers where to begin", path, exc)
            return None

    def save(self, peer_id: str, mark: Mark) -> None:
        """Write a mark, durably. Raises OSError."""
        replace_file(self.path(peer_id), mark.encode(), sync=True)

    def load_boot(self, peer_id: str) -> BootNote | None:
        """The note about a peer's machine, None when there is none."""
        try:
            data = json.loads(self._boot_path(peer_id).read_bytes())
            safe = BinlogPosition(int(data["binlog_index"]), int(data["binlog_offset"]))
            number, offset = data.get("again_until", (0, 0))
            again_until = BinlogPosition(int(number), int(offset))
            return BootNote(str(data["boot_id"]), safe, again_until)
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as exc:
            logger.warning("%s: %r", self._boot_path(peer_id), exc)
            return None

    def save_boot(self, peer_id: str, note: BootNote) -> None:
        """Write a note, durably. Raises OSError."""
        data = {
            "boot_id": note.boot_id,
            "binlog_index": note.safe.number,
            "binlog_offset": note.safe.offset,
            "again_until": note.again_until,
        }
        replace_file(self._boot_path(peer_id), json.dumps(data).encode(), sync=True)

    def load_unreadable(self, peer_id: str) -> Unreadable:
        """The files that could not be brought to a peer. Raises OSError."""
        try:
            text = self._beside(peer_id, _UNREADABLE_SUFFIX).read_bytes()
        except FileNotFoundError:
            text = b""
        return Unreadable(peer_id, text)

    def save_unreadable(self, peer_id: str, text: bytes) -> None:
        """Write the list, durably; none when it is empty. Raises OSError."""
        path = self._beside(peer_id, _UNREADABLE_SUFFIX)
        if text:
            replace_file(path, text, sync=True)
        else:
            path.unlink(missing_ok=True)

    def retire(self, peer_id: str) -> None:
        """The peer was removed from the group: keep its mark under another name."""
        stamp = time.strftime("%Y%m%d%H%M%S")
        path = self.path(peer_id)
        try:
            path.rename(path.with_name(f"{path.name}.{stamp}"))
            logger.info("%s is put aside: the peer was removed", path.name)
        except FileNotFoundError:
            pass
        for suffix in _OUR_SUFFIXES:
            self._beside(peer_id, suffix).unlink(missing_ok=True)

    def move(self, old_id: str, new_id: str) -> None:
        """The peer goes on under another id: so does its mark."""
        try:
            os.rename(self.path(old_id), self.path(new_id))
            logger.info("%s goes on as %s", old_id, new_id)
        except FileNotFoundError:
            pass
        for suffix in _OUR_SUFFIXES:
            try:
                os.rename(self._beside(old_id, suffix), self._beside(new_id, suffix))
            except FileNotFoundError:
                pass

    def _boot_path(self, peer_id: str) -> Path:
        return self._beside(peer_id, _BOOT_SUFFIX)

    def _beside(self, peer_id: str, suffix: str) -> Path:
        path = self.path(peer_id)
        return path.with_name(path.name[: -len(MARK_SUFFIX)] + suffix)
