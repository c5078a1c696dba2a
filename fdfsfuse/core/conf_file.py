"""The syntax of FastDFS configuration files, and the addresses and amounts written in them.

Source: protocol/config.md section 1, protocol/load-balancing.md section 2. Nothing here opens a
file: the caller passes ``read``, which returns the bytes of a path or raises OSError.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable
from dataclasses import dataclass

from fdfsfuse.errors import ConfigError

ReadFile = Callable[[str], bytes]

DEFAULT_TRACKER_PORT = 22122
MAX_INCLUDE_DEPTH = 16
_MIB = 1 << 20
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_BYTES = re.compile(r"(\d+)\s*([KMGT]?)B?\Z", re.IGNORECASE)
_PERCENT = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*%\Z")
_TIME = re.compile(r"(\d{1,2}):(\d{1,2})\Z")


@dataclass(frozen=True, slots=True)
class Entry:
    """One ``key = value`` line. ``section`` is '' before the first ``[section]``."""

    section: str
    key: str
    value: str
    file: str
    line: int

    def error(self, rule: str) -> ConfigError:
        """The error for this line's value; *rule* says what it must be."""
        return ConfigError(f"{self.file}:{self.line}: {self.key} = {self.value}: {rule}")


def parse_file(path: str, read: ReadFile) -> tuple[list[Entry], list[str]]:
    """All entries of a file and of those it includes, in order, and warnings about odd lines.

    An entry with an empty value counts as absent and is left out.

    Raises:
        ConfigError: a file cannot be read, includes itself, or includes nest too deeply.
    """
    entries: list[Entry] = []
    warnings: list[str] = []
    _parse_into(path, read, (), "", entries, warnings)
    return entries, warnings


def _parse_into(
    path: str,
    read: ReadFile,
    including: tuple[str, ...],
    section: str,
    entries: list[Entry],
    warnings: list[str],
) -> str:
    """Parse *path*; returns the section that is current at its end."""
    normal = posixpath.normpath(path)
    place = including[-1] + ": #include " if including else ""
    if normal in including:
        raise ConfigError(f"{place}{path}: the files include each other in a circle")
    if len(including) >= MAX_INCLUDE_DEPTH:
        raise ConfigError(f"{place}{path}: more than {MAX_INCLUDE_DEPTH} nested includes")
    try:
        text = read(path).decode("utf-8", "surrogateescape")
    except OSError as exc:
        raise ConfigError(f"{place}{path}: {exc.strerror or exc}") from exc
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.strip()
        if line.startswith("#include"):
            included = line[len("#include") :].strip().strip("\"'")
            target = posixpath.join(posixpath.dirname(path), included)
            section = _parse_into(target, read, (*including, normal), section, entries, warnings)
        elif not line or line.startswith("#"):
            continue
        elif line.startswith("[") and line.endswith("]"):
            section = line[1:-1].strip()
        elif "=" not in line:
            warnings.append(f"{path}:{number}: ignored, it is not of the form key = value")
        else:
            key, _, value = line.partition("=")
            if value.strip():
                entries.append(Entry(section, key.strip(), value.strip(), path, number))
    return section


def parse_bytes(text: str) -> int:
    """``64KB``, ``10G``, ``500 MB``, ``1024`` -> bytes. Raises ValueError."""
    match = _BYTES.match(text)
    if match is None:
        raise ValueError("must be a number of bytes, with K, M, G or T if wanted, such as 256KB")
    return int(match[1]) * _UNITS[match[2].upper()]


def parse_time_of_day(text: str) -> tuple[int, int]:
    """``02:00`` -> (2, 0). Raises ValueError."""
    match = _TIME.match(text)
    if match is None or int(match[1]) > 23 or int(match[2]) > 59:
        raise ValueError("must be a time of day HH:MM from 00:00 to 23:59")
    return int(match[1]), int(match[2])


@dataclass(frozen=True, slots=True)
class ReservedSpace:
    """Space that uploads must leave free: ``ratio`` of the total, or else ``mb`` absolute.

    All checks are strict: exactly the reserved amount left is too little
    (load-balancing.md section 2).
    """

    mb: int = 1024
    ratio: float | None = None

    @classmethod
    def parse(cls, text: str) -> ReservedSpace:
        """Parse ``20%``, ``1GB``, ``500 MB`` or plain bytes. Raises ValueError."""
        percent = _PERCENT.match(text)
        # Command 75 carries two digits behind the point, and neither 0% nor 100% is allowed there.
        if percent is not None and 0.005 < float(percent[1]) < 99.995:
            return cls(0, float(percent[1]) / 100)
        try:
            return cls(parse_bytes(text) // _MIB)
        except ValueError:
            raise ValueError(
                "must be an amount such as 10GB, or a percentage between 0% and 100%"
            ) from None

    def __str__(self) -> str:
        """The form that command 75 sends: ``20.00%`` or ``1024MB``."""
        return f"{self.mb}MB" if self.ratio is None else f"{self.ratio * 100:.2f}%"

    def reserved_mb(self, total_mb: int) -> int:
        """The reserved amount of something that has *total_mb* (for statistics)."""
        return self.mb if self.ratio is None else int(total_mb * self.ratio)

    def group_has_space(self, free_mb: int, total_mb: int) -> bool:
        """True when a group with this space takes uploads."""
        if self.ratio is None:
            return free_mb > self.mb
        return total_mb > 0 and free_mb / total_mb > self.ratio

    def path_has_space(self, free_mb: int, total_mb: int, path_count: int, size: int = 0) -> bool:
        """True when one of *path_count* store paths takes an upload of *size* bytes."""
        free_mb -= size // _MIB
        if self.ratio is None:
            return free_mb > self.mb // path_count
        return total_mb > 0 and free_mb / total_mb > self.ratio


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """``host:port``, ``ip1,ip2:port`` or ``[v6]:port``; ``hosts`` are 1 or 2, tried in order."""

    hosts: tuple[str, ...]
    port: int

    @classmethod
    def parse(cls, text: str, default_port: int = DEFAULT_TRACKER_PORT) -> ServerAddress:
        """Raises ValueError saying what it must be."""
        hosts_text, port = text.strip(), default_port
        head, colon, tail = hosts_text.rpartition(":")
        if colon and "]" not in tail and (":" not in head or head.endswith("]")):
            if not tail.isascii() or not tail.isdigit() or not 0 < int(tail) < 65536:
                raise ValueError("must be host:port with a port from 1 to 65535")
            hosts_text, port = head, int(tail)
        hosts = tuple(host.strip().strip("[]") for host in hosts_text.split(","))
        if not 1 <= len(hosts) <= 2 or not all(hosts) or any(" " in host for host in hosts):
            raise ValueError("must be host:port, ip1,ip2:port or [ipv6]:port")
        return cls(hosts, port)

    def __str__(self) -> str:
        hosts = ",".join(f"[{host}]" if ":" in host else host for host in self.hosts)
        return f"{hosts}:{self.port}"
