"""POSIX ACLs: what creating, chmod and setting an ACL make of mode and entries.

An ACL is kept as the value of the xattr ``system.posix_acl_access`` or, for what is made in a
directory, ``system.posix_acl_default``, in the form that the kernel has for it, little-endian:

====== ==== ===================================================================
offset size
====== ==== ===================================================================
0      4    version, 2
4 + 8i 2    tag: 1 owner, 2 user, 4 owning group, 8 group, 16 mask, 32 others
6 + 8i 2    permissions, 0..7
8 + 8i 4    uid or gid of tags 2 and 8, else 0xFFFFFFFF
====== ==== ===================================================================

The rules are those of acl(5): group permissions of the mode are the mask, where there is one.
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

ACCESS: Final = b"system.posix_acl_access"
DEFAULT: Final = b"system.posix_acl_default"
NAMES: Final = frozenset((ACCESS, DEFAULT))

OWNER, USER, OWNING_GROUP, GROUP, MASK, OTHERS = 1, 2, 4, 8, 16, 32
_VERSION: Final = 2
_HEAD: Final = struct.Struct("<I")
_ENTRY: Final = struct.Struct("<HHI")
_NO_ID: Final = 0xFFFFFFFF
_ORDER: Final = (OWNER, USER, OWNING_GROUP, GROUP, MASK, OTHERS)


class Entry(NamedTuple):
    """Who (``tag``, ``id``) may do what (``perm``: 4 read, 2 write, 1 execute)."""

    tag: int
    perm: int
    id: int = _NO_ID


def decode(value: bytes) -> list[Entry]:
    """The entries of an ACL.

    Raises:
        ValueError: it is malformed, or not an ACL that acl_valid(3) accepts.
    """
    body = value[_HEAD.size :]
    if len(value) < _HEAD.size or _HEAD.unpack_from(value)[0] != _VERSION:
        raise ValueError("no ACL of version 2")
    if len(body) % _ENTRY.size:
        raise ValueError("an entry is cut off")
    entries = [Entry(*fields) for fields in _ENTRY.iter_unpack(body)]
    tags = [entry.tag for entry in entries]
    if any(tag not in _ORDER for tag in tags) or any(entry.perm > 7 for entry in entries):
        raise ValueError("an unknown tag or permission")
    named = USER in tags or GROUP in tags
    single = all(tags.count(tag) == 1 for tag in (OWNER, OWNING_GROUP, OTHERS))
    if not single or tags.count(MASK) > 1 or (named and MASK not in tags):
        raise ValueError("an entry is missing or there twice")
    if tags != sorted(tags, key=_ORDER.index):
        raise ValueError("entries in disorder")
    ids = [(entry.tag, entry.id) for entry in entries if entry.tag in (USER, GROUP)]
    if len(set(ids)) != len(ids) or any(number == _NO_ID for _, number in ids):
        raise ValueError("a user or group twice, or none")
    return entries


def encode(entries: Sequence[Entry]) -> bytes:
    """The inverse of `decode`."""
    return _HEAD.pack(_VERSION) + b"".join(_ENTRY.pack(*entry) for entry in entries)


def permissions(entries: Sequence[Entry]) -> int:
    """The nine permission bits of a mode that go with an access ACL."""
    by_tag = {entry.tag: entry.perm for entry in entries}
    group = by_tag.get(MASK, by_tag[OWNING_GROUP])
    return by_tag[OWNER] << 6 | group << 3 | by_tag[OTHERS]


def is_minimal(entries: Sequence[Entry]) -> bool:
    """Whether the ACL says no more than a mode does, and need not be kept."""
    return len(entries) == 3


def after_chmod(entries: Sequence[Entry], mode: int) -> list[Entry]:
    """The access ACL after chmod to *mode*."""
    group = MASK if any(entry.tag == MASK for entry in entries) else OWNING_GROUP
    new = {OWNER: mode >> 6 & 7, group: mode >> 3 & 7, OTHERS: mode & 7}
    return [entry._replace(perm=new.get(entry.tag, entry.perm)) for entry in entries]


def inherit(default: Sequence[Entry], mode: int) -> tuple[list[Entry], int]:
    """The access ACL and the mode of what is made with *mode* in a directory with *default*.

    The umask has no say: see acl(5), object creation.
    """
    group = MASK if any(entry.tag == MASK for entry in default) else OWNING_GROUP
    allowed = {OWNER: mode >> 6 & 7, group: mode >> 3 & 7, OTHERS: mode & 7}
    entries = [entry._replace(perm=entry.perm & allowed.get(entry.tag, 7)) for entry in default]
    return entries, mode & ~(stat.S_IRWXU | stat.S_IRWXG | stat.S_IRWXO) | permissions(entries)
