"""The ``-o`` options of fdfs-mount: ours, libfuse's, and what mount(8) passes to everyone."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from fdfsfuse.errors import ConfigError
from fdfsfuse.vfs.options import Ids, VfsOptions

_TO_LIBFUSE = frozenset(
    (
        "allow_other",
        "ro",
        "suid",
        "nosuid",
        "dev",
        "nodev",
        "exec",
        "noexec",
        "noatime",
        "sync",
        "async",
        "dirsync",
    )
)
_IGNORED = frozenset(
    (
        "rw",
        "defaults",
        "default_permissions",
        "auto",
        "noauto",
        "nofail",
        "user",
        "nouser",
        "users",
        "owner",
        "group",
        "_netdev",
        "atime",
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
    )
)
_IGNORED_KEYS = frozenset(("comment",))
_VALUES = ("uid", "gid", "umask", "ids", "timeout", "attr_timeout", "log")


@dataclass(frozen=True, slots=True)
class MountOptions:
    """What ``-o`` said. ``log`` is a file's path, ``syslog`` or '' (not said)."""

    vfs: VfsOptions = field(default_factory=VfsOptions)
    libfuse: frozenset[str] = frozenset()
    log: str = ""


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
    if name in _VALUES:
        if not equals:
            raise ConfigError(f"-o {name} needs a value: {name}=...")
        return _apply_value(options, name, value)
    if name in _IGNORED_KEYS or name.lower().startswith("x-"):
        return options
    if equals and name in _TO_LIBFUSE | _IGNORED:
        raise ConfigError(f"-o {name} takes no value")
    if name in _TO_LIBFUSE:
        return replace(options, libfuse=options.libfuse | {name})
    if name in _IGNORED:
        libfuse = options.libfuse - {"ro"} if name == "rw" else options.libfuse
        return replace(options, libfuse=libfuse)
    near = difflib.get_close_matches(name, [*_VALUES, *_TO_LIBFUSE, *_IGNORED], 1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise ConfigError(f"-o {name} is not an option of fdfs-mount{hint}")


def _apply_value(options: MountOptions, name: str, value: str) -> MountOptions:
    if name == "log":
        if value != "syslog" and not value.startswith("/"):
            raise ConfigError(f"-o log={value}: an absolute path or syslog is allowed")
        return replace(options, log=value)
    vfs = options.vfs
    if name in ("uid", "gid"):
        number = _number(name, value, 10)
        vfs = replace(vfs, uid=number) if name == "uid" else replace(vfs, gid=number)
    elif name == "umask":
        vfs = replace(vfs, umask=_number(name, value, 8))
    elif name == "ids":
        if value not in {ids.value for ids in Ids}:
            raise ConfigError(f"-o ids={value}: ro, rw or hide is allowed")
        vfs = replace(vfs, ids=Ids(value))
    elif name == "timeout":
        vfs = replace(vfs, timeout_s=_seconds(name, value, 1))
    else:
        vfs = replace(vfs, attr_timeout_s=_seconds(name, value, 0))
    return replace(options, vfs=vfs)


def _number(name: str, value: str, base: int) -> int:
    try:
        number = int(value, base)
    except ValueError:
        number = -1
    limit = 0o777 if name == "umask" else 0xFFFFFFFE
    if not 0 <= number <= limit:
        what = "three octal digits" if name == "umask" else "a numeric id"
        raise ConfigError(f"-o {name}={value}: {what} is allowed")
    return number


def _seconds(name: str, value: str, least: float) -> float:
    if not re.fullmatch(r"\d{1,6}(\.\d{1,3})?", value) or float(value) < least:
        raise ConfigError(f"-o {name}={value}: seconds are allowed, {least:g} or more")
    return float(value)
