"""How large files can be, which depends on the file system that the tests run on."""

from __future__ import annotations

import tempfile
from pathlib import Path


def can_have(directory: Path, size: int) -> bool:
    """True when a file in *directory* can have *size* bytes: 16 TiB on ext4, 8 EiB on tmpfs."""
    with tempfile.TemporaryFile(dir=directory) as file:
        try:
            file.truncate(size)
        except OSError:
            return False
    return True
