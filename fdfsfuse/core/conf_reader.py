"""Typed access to the entries of a configuration file, and the complaints about them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable
from typing import TypeVar

from fdfsfuse.core.conf_file import Entry, ReadFile, parse_bytes, parse_file, parse_time_of_day
from fdfsfuse.errors import ConfigError

_T = TypeVar("_T")
_TRUE = frozenset({"true", "yes", "on", "1"})
_FALSE = frozenset({"false", "no", "off", "0"})
_INTEGER = re.compile(r"[+-]?\d{1,18}\Z")
_NUMBER = re.compile(r"\d{1,9}(\.\d{1,9})?\Z")
MAX_PERIOD_S = 366 * 86400

LOG_KEYS = (
    "sync_log_buff_interval",
    "log_file_rotate_everyday",
    "log_file_rotate_time",
    "log_file_compress_old",
    "log_file_compress_days_before",
    "log_file_rotate_on_size",
    "log_file_keep_days",
    "log_file_delete_old_time",
)
LOG_LEVELS = ("emerg", "alert", "crit", "error", "warn", "warning", "notice", "info", "debug")


class ConfReader:
    """Hands out the values of one file by key, and at the end the warnings of `finish`.

    Every method returns the default when the key is absent, and raises ConfigError
    ``FILE:LINE: key = value: must be ...`` when its value is wrong.
    """

    def __init__(self, path: str, read: ReadFile) -> None:
        self.path = path
        self.read = read
        self.entries, self.warnings = parse_file(path, read)
        self._known: set[str] = set(LOG_KEYS)
        self._known_patterns: list[re.Pattern[str]] = []
        self._by_key: dict[str, list[Entry]] = {}
        for entry in self.entries:
            if not entry.section:
                self._by_key.setdefault(entry.key, []).append(entry)

    def missing(self, key: str, why: str) -> ConfigError:
        """The error for an absent key that is needed."""
        return ConfigError(f"{self.path}: {key} is missing: {why}")

    def entry(self, key: str) -> Entry | None:
        """The line of *key*; the last one, with a warning, when it is given more than once."""
        self._known.add(key)
        found = self._by_key.get(key, [])
        if len(found) > 1:
            last = found[-1]
            self.warnings.append(
                f"{last.file}:{last.line}: {key} is given {len(found)} times, this last one counts"
            )
        return found[-1] if found else None

    def values(self, key: str) -> list[Entry]:
        """All lines of a key that may be repeated."""
        self._known.add(key)
        return self._by_key.get(key, [])

    def parsed(self, key: str, default: _T, parse: Callable[[str], _T]) -> _T:
        """The value through *parse*, whose ValueError text says what it must be."""
        entry = self.entry(key)
        if entry is None:
            return default
        try:
            return parse(entry.value)
        except ValueError as exc:
            raise entry.error(str(exc)) from exc

    def text(self, key: str, default: str = "") -> str:
        """The value as it is written."""
        return self.parsed(key, default, str)

    def required(self, key: str, why: str) -> str:
        """The value of a key that must be there."""
        value = self.text(key)
        if not value:
            raise self.missing(key, why)
        return value

    def integer(self, key: str, default: int, low: int, high: int) -> int:
        """A whole number from *low* to *high*, both included."""

        def parse(text: str) -> int:
            if not _INTEGER.match(text) or not low <= int(text) <= high:
                raise ValueError(f"must be a whole number from {low} to {high}")
            return int(text)

        return self.parsed(key, default, parse)

    def seconds(self, key: str, default: float, low: float = 0.0) -> float:
        """A period in seconds of at least *low*; we allow decimals, FastDFS does not."""

        def parse(text: str) -> float:
            if not _NUMBER.match(text) or not low <= float(text) <= MAX_PERIOD_S:
                at_least = f"at least {low:g}, " if low else ""
                raise ValueError(f"must be a number of seconds, {at_least}without a unit")
            return float(text)

        return self.parsed(key, default, parse)

    def size(self, key: str, default: int, low: int = 0) -> int:
        """An amount of bytes, with or without a unit, of at least *low*."""

        def parse(text: str) -> int:
            value = parse_bytes(text)
            if value < low:
                raise ValueError(f"must be at least {low} bytes")
            return value

        return self.parsed(key, default, parse)

    def boolean(self, key: str, default: bool = False) -> bool:
        """FastDFS takes anything but true, yes, on and 1 as false; odd words give a warning."""
        entry = self.entry(key)
        if entry is None:
            return default
        word = entry.value.lower()
        if word not in _TRUE | _FALSE:
            self.warnings.append(
                f"{entry.file}:{entry.line}: {key} = {entry.value}: counts as false; "
                "true and false are meant"
            )
        return word in _TRUE

    def time_of_day(self, key: str, default: tuple[int, int]) -> tuple[int, int]:
        """HH:MM as (hour, minute)."""
        return self.parsed(key, default, parse_time_of_day)

    def choice(self, key: str, default: str, allowed: Iterable[str]) -> str:
        """One of *allowed*, any case; returned as *allowed* spells it."""
        spelled = {word.lower(): word for word in allowed}

        def parse(text: str) -> str:
            word = spelled.get(text.lower())
            if word is None:
                raise ValueError(f"must be one of {', '.join(spelled.values())}")
            return word

        return self.parsed(key, default, parse)

    def addresses(self, key: str) -> tuple[str, ...]:
        """``ip`` or ``v4,v6``; none means all local addresses."""

        def parse(text: str) -> tuple[str, ...]:
            found = tuple(part.strip() for part in text.split(",") if part.strip())
            if len(found) > 2:
                raise ValueError("must be one address, or an IPv4 and an IPv6 address")
            return found

        return self.parsed(key, (), parse)

    def ignore(self, *keys: str, patterns: Iterable[str] = ()) -> None:
        """Accept these keys silently."""
        self._known.update(keys)
        self._known_patterns.extend(re.compile(pattern + r"\Z") for pattern in patterns)

    def refuse_if_disabled(self) -> None:
        """``disabled = true`` in a file says that the program is not to start."""
        entry = self.entry("disabled")
        if entry is not None and entry.value.lower() in _TRUE:
            raise entry.error("this configuration is disabled; remove the line to start")

    def finish(self, sections: dict[str, frozenset[str]]) -> tuple[str, ...]:
        """All warnings, unknown keys included. *sections* are known and their keys ignored."""
        for entry in self.entries:
            if entry.section:
                known = sections.get(entry.section)
                if known is None or entry.key not in known:
                    self.warnings.append(
                        f"{entry.file}:{entry.line}: [{entry.section}] {entry.key}: "
                        "unknown key, ignored"
                    )
            elif entry.key not in self._known and not any(
                pattern.match(entry.key) for pattern in self._known_patterns
            ):
                close = difflib.get_close_matches(entry.key, self._known, n=1, cutoff=0.8)
                hint = f"; did you mean {close[0]}?" if close else ""
                self.warnings.append(
                    f"{entry.file}:{entry.line}: {entry.key}: unknown key, ignored{hint}"
                )
        return tuple(self.warnings)
