"""The caches that the kernel keeps for the mount, and making it remember and forget."""

from __future__ import annotations

import errno
import logging

import pyfuse3

log = logging.getLogger(__name__)

_NOTHING_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ESTALE, errno.EINVAL, errno.ENODEV)
"""The kernel does not know the inode or the name, or (the last two) the mount has ended."""


class KernelCaches:
    """A `fdfsfuse.vfs.recalls.Kernel`: an OSError that left a handler would end the mount."""

    def store_pages(self, number: int, content: bytes, offset: int = 0) -> bool:
        try:
            pyfuse3.notify_store(number, offset, content)
        except OSError as exc:
            _note(exc, "take pages of", number)
            return False
        return True

    def forget_attributes(self, number: int) -> None:
        try:
            pyfuse3.invalidate_inode(number, attr_only=True)
        except OSError as exc:
            _note(exc, "forget attributes of", number)

    def forget_pages(self, number: int) -> None:
        try:
            pyfuse3.invalidate_inode(number)
        except OSError as exc:
            _note(exc, "forget pages of", number)

    def forget_name(self, parent: int, name: bytes) -> None:
        try:
            pyfuse3.invalidate_entry(parent, name)
        except OSError as exc:
            _note(exc, "forget a name in", parent)


def _note(exc: OSError, what: str, number: int) -> None:
    if exc.errno not in _NOTHING_THERE:
        log.warning("the kernel did not %s %d: %s", what, number, exc)
