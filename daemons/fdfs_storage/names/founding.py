"""The names directory ``base_path/data/names``: founding it, and opening what is in it.

Files: ``view.json`` (`view_file`), ``state.db`` with its ``-wal`` and ``-shm`` (`schema`),
``log.<first index>`` (`log`). The directory is made under another name and renamed when all of it
is on the disk, so it exists whole or not at all.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from fdfs_storage.files import sync_directory
from fdfs_storage.names import schema, view_file
from fdfs_storage.names.view_file import StoredView
from fdfsfuse.core.names_log import View

DIRECTORY = "names"
DATABASE = "state.db"


def names_directory(base_path: str | Path) -> Path:
    """Where the tree of a storage is kept."""
    return Path(base_path) / "data" / DIRECTORY


def found(directory: Path, own_id: str, volume_id: str, now_ns: int) -> None:
    """Make an empty tree: view 1, kept by *own_id* alone. Nothing to do when there is one.

    Raises:
        OSError: it could not be made; then there is none.
    """
    if directory.exists():
        return
    new = directory.with_name(f".{directory.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True, mode=0o750)
    view_file.write(new, StoredView(View(1, own_id, (own_id,)), volume_id))
    db = schema.connect(str(new / DATABASE))
    try:
        # Who runs the storage may use it: a user who tries it out has no root to chown it.
        schema.create(db, volume_id, now_ns, (os.geteuid(), os.getegid()))
    finally:
        db.close()  # the last connection moves the WAL into the database and syncs it
    fd = os.open(new / DATABASE, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
    sync_directory(new)
    os.rename(new, directory)
    sync_directory(directory.parent)
