"""``view.json`` in the names directory: the view that this storage acts in.

It is on disk before the storage acts in it, and replaced as a whole: written under another name,
synced, renamed, and the directory synced, so that a crash leaves the old or the new one.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

from fdfs_storage.files import sync_directory
from fdfsfuse.core.names_log import View
from fdfsfuse.errors import FdfsError, UsageError
from fdfsfuse.proto import names

NAME = "view.json"
_VOLUME_ID = re.compile(r"[0-9a-f]{32}\Z")


class ViewFileDamaged(FdfsError):
    """The file does not hold a view; the text says which file and what is wrong."""


@dataclass(frozen=True, slots=True)
class StoredView:
    """A view and the volume that it belongs to (32 hex digits)."""

    view: View
    volume_id: str

    def to_wire(self) -> names.View:
        """As QUERY_VIEW answers it."""
        view = self.view
        return names.View(view.number, view.primary, list(view.members), self.volume_id)


def read(directory: Path) -> StoredView:
    """The view in *directory*. Raises ViewFileDamaged, FileNotFoundError."""
    path = directory / NAME
    try:
        data = json.loads(path.read_bytes())
        members = tuple(str(member) for member in data["members"])
        stored = StoredView(
            View(int(data["number"]), str(data["primary"]), members), str(data["volume_id"])
        )
    except (ValueError, KeyError, TypeError, UsageError) as exc:
        raise ViewFileDamaged(f"{path} holds no view: {exc!r}") from exc
    if not _VOLUME_ID.match(stored.volume_id):
        raise ViewFileDamaged(f"{path} holds no volume id")
    return stored


def write(directory: Path, stored: StoredView) -> None:
    """Put *stored* in place of the view in *directory*, durably."""
    view = stored.view
    data = {
        "number": view.number,
        "primary": view.primary,
        "members": list(view.members),
        "volume_id": stored.volume_id,
    }
    path, new = directory / NAME, directory / f"{NAME}.new"
    with open(new, "wb") as file:
        file.write(json.dumps(data, indent=1).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, path)
    sync_directory(directory)
