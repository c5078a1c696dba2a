"""storage_ids.conf: the table of storage ids (protocol/config.md section 4).

The same line format travels in the answer of command 69.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from fdfsfuse.core.conf_file import ServerAddress
from fdfsfuse.errors import ConfigError, UsageError
from fdfsfuse.proto.fileid import MAX_NUMERIC_STORAGE_ID, check_group_name

DEFAULT_STORAGE_PORT = 23000
RW_NONE, RW_WRITE, RW_READ, RW_BOTH = 0, 2, 4, 6
_RW = {
    "both": RW_BOTH,
    "all": RW_BOTH,
    "read": RW_READ,
    "readonly": RW_READ,
    "write": RW_WRITE,
    "writeonly": RW_WRITE,
    "none": RW_NONE,
}
_RW_NAMES = {RW_READ: "read", RW_WRITE: "write", RW_NONE: "none"}
_ID = re.compile(r"[0-9]{1,15}\Z")


@dataclass(frozen=True, slots=True)
class StorageIdEntry:
    """One line. ``port`` is None when the line gives none; ``hosts`` are 1 or 2 addresses."""

    storage_id: str
    group_name: str
    hosts: tuple[str, ...]
    port: int | None
    rw_mode: int = RW_BOTH

    def line(self) -> str:
        """The line as command 69 sends it, without the newline; rw only when it is not both."""
        hosts = ",".join(f"[{host}]" if ":" in host else host for host in self.hosts)
        port = "" if self.port is None else f":{self.port}"
        rw = "" if self.rw_mode == RW_BOTH else f" rw={_RW_NAMES[self.rw_mode]}"
        return f"{self.storage_id} {self.group_name} {hosts}{port}{rw}"


def _parse_line(line: str) -> StorageIdEntry:
    """Raises ValueError saying what it must be."""
    fields = line.split()
    if len(fields) < 3:
        raise ValueError("must be <id> <group_name> <ip_or_hostname[:port]> [rw=...]")
    storage_id, group, address, *options = fields
    if not _ID.match(storage_id) or int(storage_id) == 0:
        raise ValueError("an id is a natural number of at most 15 digits")
    try:
        check_group_name(group)
    except UsageError as exc:
        raise ValueError(str(exc)) from exc
    # Port 0 is not a valid port, so as a default it tells that the line has none.
    parsed = ServerAddress.parse(address, 0)
    rw_mode = RW_BOTH
    for option in options:
        key, _, value = option.partition("=")
        if key != "rw" or value not in _RW:
            raise ValueError("the only option is rw=both, rw=read, rw=write or rw=none")
        rw_mode = _RW[value]
    return StorageIdEntry(storage_id, group, parsed.hosts, parsed.port or None, rw_mode)


@dataclass(frozen=True, slots=True)
class StorageIds:
    """The table, in file order."""

    entries: tuple[StorageIdEntry, ...] = ()

    @classmethod
    def parse(cls, text: str, place: str) -> StorageIds:
        """Parse a whole file; *place* is its name for errors.

        Raises:
            ConfigError: a line is malformed, or an id appears twice.
        """
        entries: list[StorageIdEntry] = []
        seen: set[str] = set()
        for number, raw in enumerate(text.splitlines(), 1):
            line = raw.partition("#")[0].strip()
            if not line:
                continue
            try:
                entry = _parse_line(line)
                if entry.storage_id in seen:
                    raise ValueError("this id was given before")
            except ValueError as exc:
                raise ConfigError(f"{place}:{number}: {line}: {exc}") from exc
            seen.add(entry.storage_id)
            entries.append(entry)
        return cls(tuple(entries))

    def __iter__(self) -> Iterator[StorageIdEntry]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def by_id(self, storage_id: str) -> StorageIdEntry | None:
        """The entry of an id."""
        return next((e for e in self.entries if e.storage_id == storage_id), None)

    def find(self, group_name: str | None, ip: str, port: int) -> StorageIdEntry | None:
        """The entry of (group, ip, port); None as group matches every group.

        A line without a port stands for the only instance on its host.
        """
        for entry in self.entries:
            if group_name is not None and entry.group_name != group_name:
                continue
            if ip in entry.hosts and entry.port in (None, port):
                return entry
        return None

    @property
    def has_ipv6(self) -> bool:
        """True when any address is an IPv6 one; auto address sizes then become 46."""
        return any(":" in host for entry in self.entries for host in entry.hosts)

    @property
    def fit_file_names(self) -> bool:
        """True when every id is small enough for a file name (file-id.md section 2)."""
        return all(int(entry.storage_id) <= MAX_NUMERIC_STORAGE_ID for entry in self.entries)
