"""The ``-o`` options of fdfs-mount: ours, libfuse's, and what mount(8) passes to everyone."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from fdfsfuse.client.address import Address, parse_address
from fdfsfuse.errors import ConfigError
from fdfsfuse.vfs.options import Ids, VfsOptions

_TO_LIBFUSE = frozenset(
    (
        "allow_other",
        "default_permissions",
        "ro",
        "rw",
        "suid",
        "nosuid",
        "dev",
        "nodev",
        "exec",
        "noexec",
        "atime",
        "noatime",
        "sync",
        "async",
        "dirsync",
    )
)
_OPPOSITE = {
    "ro": "rw",
    "suid": "nosuid",
    "dev": "nodev",
    "exec": "noexec",
    "atime": "noatime",
    "async": "sync",
}
_OPPOSITE |= {opposite: name for name, opposite in _OPPOSITE.items()}
_IGNORED = frozenset(
    (
        "defaults",
        "auto",
        "noauto",
        "nofail",
        "user",
        "nouser",
        "users",
        "owner",
        "group",
        "_netdev",
        "relatime",
        "norelatime",
        "strictatime",
        "nostrictatime",
        "lazytime",
        "nolazytime",
        "diratime",
        "nodiratime",
        "silent",
        "loud",
        "iversion",
        "noiversion",
        "mand",
        "nomand",
        "nosymfollow",
        "bg",
        "fg",
    )
)
_IGNORED_KEYS = frozenset(
    (
        "comment",
        "user",
        "context",
        "fscontext",
        "defcontext",
        "rootcontext",
        # The kernel's own, which mount(8) repeats when it remounts.
        "user_id",
        "group_id",
        "max_read",
        "blksize",
    )
)
_UNITS = {"": 0, "k": 10, "m": 20, "g": 30}


@dataclass(frozen=True, slots=True)
class MountOptions:
    """What ``-o`` said. ``log`` is a file's path, ``syslog`` or '' (not said).

    ``remount``: the flags of a mount that is there are to be changed.
    """

    vfs: VfsOptions = field(default_factory=VfsOptions)
    libfuse: frozenset[str] = frozenset()
    log: str = ""
    remount: bool = False


def parse_source(text: str) -> tuple[list[Address], str]:
    """What is to be mounted: ``[fdfs://]TRACKER[,TRACKER...][/VOLUME[/DIRECTORY]]``.

    Returns the trackers, and ``VOLUME/DIRECTORY`` or '' for all volumes.

    Raises:
        ConfigError, UsageError: it is nothing of the kind.
    """
    hosts, _, path = text.removeprefix("fdfs://").partition("/")
    trackers = [parse_address(part) for part in hosts.split(",") if part.strip()]
    if not trackers:
        raise ConfigError(
            f"no tracker was given in {text!r}: TRACKER[,TRACKER...][/VOLUME[/DIRECTORY]]"
        )
    parts = [part for part in path.split("/") if part and part != "."]
    if ".." in parts:
        raise ConfigError(f"{text}: .. is not allowed in what is mounted")
    return trackers, "/".join(parts)


def parse_options(lists: Iterable[str]) -> MountOptions:
    """Read comma-separated lists of options; later ones win.

    Raises:
        ConfigError: an option is unknown, or its value is wrong.
    """
    options = MountOptions()
    for text in lists:
        for part in filter(None, (part.strip() for part in text.split(","))):
            options = _apply(options, part)
    return options


def _apply(options: MountOptions, part: str) -> MountOptions:
    name, equals, value = part.partition("=")
    if name in _VALUES or name == "log":
        if not equals:
            raise ConfigError(f"-o {name} needs a value: {name}=...")
        if name == "log":
            return replace(options, log=_log(value))
        attribute, parse = _VALUES[name]
        return replace(options, vfs=replace(options.vfs, **{attribute: parse(name, value)}))
    if name in _IGNORED_KEYS or name.lower().startswith("x-"):
        return options
    if equals and name in _KNOWN:
        raise ConfigError(f"-o {name} takes no value")
    if name == "remount":
        return replace(options, remount=True)
    if name in _FLAGS:
        return replace(options, vfs=replace(options.vfs, **_FLAGS[name]))
    if name in _TO_LIBFUSE:
        # The kernel leaves it to us how soon a change of names is stored.
        libfuse = options.libfuse - {_OPPOSITE.get(name, "")} | {name}
        vfs = replace(options.vfs, dirsync=not libfuse.isdisjoint(("sync", "dirsync")))
        return replace(options, libfuse=libfuse, vfs=vfs)
    if name in _IGNORED:
        return options
    near = difflib.get_close_matches(name, ["log", *_VALUES, *_KNOWN], 1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise ConfigError(f"-o {name} is not an option of fdfs-mount{hint}")


def _log(value: str) -> str:
    if value != "syslog" and not value.startswith("/"):
        raise ConfigError(f"-o log={value}: must be an absolute path or syslog")
    return value


def _ids(name: str, value: str) -> Ids:
    if value not in {ids.value for ids in Ids}:
        raise ConfigError(f"-o {name}={value}: must be ro, rw or hide")
    return Ids(value)


def _uid(name: str, value: str) -> int:
    if not value.isascii() or not value.isdigit() or int(value) >= 0xFFFFFFFF:
        raise ConfigError(f"-o {name}={value}: must be a numeric id")
    return int(value)


def _umask(name: str, value: str) -> int:
    if not re.fullmatch("[0-7]{1,4}", value) or int(value, 8) > 0o777:
        raise ConfigError(f"-o {name}={value}: must be three octal digits")
    return int(value, 8)


def _seconds(least: float) -> Callable[[str, str], float]:
    def parse(name: str, value: str) -> float:
        if not re.fullmatch(r"\d{1,6}(\.\d{1,3})?", value) or float(value) < least:
            raise ConfigError(f"-o {name}={value}: must be a number of seconds, {least:g} or more")
        return float(value)

    return parse


def _count(least: int) -> Callable[[str, str], int]:
    def parse(name: str, value: str) -> int:
        if not re.fullmatch(r"[0-9]{1,9}", value) or int(value) < least:
            raise ConfigError(f"-o {name}={value}: must be a whole number, {least} or more")
        return int(value)

    return parse


def _size(least: int) -> Callable[[str, str], int]:
    def parse(name: str, value: str) -> int:
        match = re.fullmatch(r"(\d{1,12})([kmgKMG]?)(i?B)?", value)
        size = int(match[1]) << _UNITS[match[2].lower()] if match else -1
        if size < least or size > 1 << 40:
            raise ConfigError(
                f"-o {name}={value}: must be bytes, or with K, M or G, {least >> 20}M or more"
            )
        return size

    return parse


_VALUES: dict[str, tuple[str, Callable[[str, str], Any]]] = {
    "uid": ("uid", _uid),
    "gid": ("gid", _uid),
    "umask": ("umask", _umask),
    "ids": ("ids", _ids),
    "timeout": ("timeout_s", _seconds(1)),
    "attr_timeout": ("attr_timeout_s", _seconds(0)),
    "lease": ("lease_s", _seconds(1)),
    "read_ahead": ("read_ahead_bytes", _size(0)),
    "cache": ("clean_bytes", _size(0)),
    "cache_entries": ("cached_entries", _count(1000)),
    "write_buffer": ("dirty_bytes", _size(8 << 20)),
}
"""Options with a value: the attribute of VfsOptions, and what reads the value. (And ``log``.)"""
_FLAGS: dict[str, dict[str, Any]] = {
    "soft": {"hard": False},
    "hard": {"hard": True},
    "acl": {"acl": True},
    "noacl": {"acl": False},
}
_KNOWN = frozenset((*_TO_LIBFUSE, *_IGNORED, *_FLAGS, "remount"))
