"""What a machine that stopped without warning may have taken from objects, given back by the log.

A killed process loses nothing that it wrote. A machine that loses its power does: object files of
small content are not synced one by one, since their content is in the log, which is. The state may
have reached the disk before the files that it names. So after a boot (the kernel's ``boot_id`` is
another one than in the file ``boot``) the records that the state has applied already are gone
through as well, and objects that are named but not whole are written again.

The log reaches back far enough: trimming it syncs all file systems first (`housekeeping`).
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterable
from pathlib import Path

from fdfs_storage.files import replace_file
from fdfs_storage.names import effects
from fdfs_storage.names.objects import Objects
from fdfsfuse.proto import names_record
from fdfsfuse.proto.names_record import Record

logger = logging.getLogger(__name__)

FILE = "boot"
_WITH_METADATA = (names_record.PutContent, names_record.PutXattr, names_record.MakeFile)


def may_have_lost(directory: Path, boot: str) -> bool:
    """True when the tree in *directory* was last opened under another boot than *boot*."""
    try:
        return (directory / FILE).read_text("ascii", "replace").strip() != boot
    except FileNotFoundError:
        return False  # the tree was founded under this boot; founding syncs what it makes


def note(directory: Path, boot: str) -> None:
    """Remember *boot*, durably; to be called before anything is changed under it.

    Raises:
        OSError: it could not be written.
    """
    replace_file(directory / FILE, f"{boot}\n".encode("ascii"), sync=True)


def restore(db: sqlite3.Connection, objects: Objects, records: Iterable[Record]) -> int:
    """Write again what is missing of the objects that *records* made; returns how many.

    *db* is the state with all of *records* applied. Only objects that an inode has are written;
    metadata only where there is none, because plain clients may have changed it since.

    Raises:
        OSError, StatusError: an object could not be written.
    """
    restored = 0
    metadata: dict[str, bytes] = {}
    for record in records:
        op = names_record.decode_change(record.payload).op
        if isinstance(op, names_record.Forget):
            for file_id in op.file_ids:
                if not _is_named(db, file_id):
                    objects.delete(file_id)
        if isinstance(op, _WITH_METADATA):
            text = op.metadata
            if text is not None and op.file_id:
                metadata[op.file_id] = text
        if isinstance(op, names_record.PutContent | names_record.MakeFile):
            if op.data is None or not op.file_id or not _is_named(db, op.file_id):
                continue
            restored += effects.make_whole(objects, op.file_id, op.data)
    for file_id, text in metadata.items():
        named = text and _is_named(db, file_id) and objects.exists(file_id)
        if named and not objects.stored_metadata(file_id):
            objects.put_metadata(file_id, text)
    if restored:
        logger.warning("wrote %d objects again that were lost when the machine stopped", restored)
    return restored


def _is_named(db: sqlite3.Connection, file_id: str) -> bool:
    row = db.execute("SELECT 1 FROM inode WHERE file_id = ?", (file_id,)).fetchone()
    return row is not None
