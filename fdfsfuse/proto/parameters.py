"""The answer of command 75: what trackers tell storages about the cluster.

Source: protocol/cluster.md section 2.2. The body is ini text, one ``key=value`` per line, exactly
in the order of the fields here, below 1024 bytes (the buffer of C storages).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from fdfsfuse.errors import ProtocolError

PARAMETERS_MAX = 1023


@dataclass(frozen=True, slots=True)
class Parameters:
    """The values, with the defaults that a storage takes when one is absent.

    ``reserved_storage_space`` is text such as ``12.00%`` or ``1024MB``; ``store_path`` is 0 round
    robin or 2 load balance; sizes are bytes, periods seconds, times of day ``HH:MM``.
    """

    use_storage_id: bool = False
    id_type_in_filename: str = "ip"
    trust_storage_server_id: bool = False
    response_ip_addr_size: int = 46
    storage_ip_changed_auto_adjust: bool = False
    storage_sync_file_max_delay: int = 86400
    store_path: int = 0
    reserved_storage_space: str = "1024MB"
    use_trunk_file: bool = False
    slot_min_size: int = 256
    slot_max_size: int = 16 << 20
    trunk_alloc_alignment_size: int = 0
    trunk_file_size: int = 64 << 20
    trunk_create_file_advance: bool = False
    trunk_create_file_time_base: str = "02:00"
    trunk_create_file_interval: int = 86400
    trunk_create_file_space_threshold: int = 0
    trunk_init_check_occupying: bool = False
    trunk_init_reload_from_binlog: bool = False
    trunk_free_space_merge: bool = False
    delete_unused_trunk_files: bool = False
    trunk_compress_binlog_min_interval: int = 0
    trunk_compress_binlog_interval: int = 0
    trunk_compress_binlog_time_base: str = "03:00"
    trunk_binlog_max_backups: int = 0
    store_slave_file_use_link: bool = False

    def encode(self) -> bytes:
        """The text; booleans are written 0 and 1."""
        lines = []
        for item in fields(self):
            value = getattr(self, item.name)
            lines.append(f"{item.name}={int(value) if isinstance(value, bool) else value}\n")
        return "".join(lines).encode("ascii")

    @classmethod
    def decode(cls, body: bytes) -> Parameters:
        """Raises ProtocolError when a value is malformed; unknown keys are skipped."""
        if len(body) > PARAMETERS_MAX:
            raise ProtocolError(f"{len(body)} bytes of cluster parameters")
        values: dict[str, Any] = {}
        for line in body.decode("ascii", "surrogateescape").splitlines():
            key, separator, text = (part.strip() for part in line.partition("="))
            parse = _PARSERS.get(key)
            if separator and parse is not None and text:
                try:
                    values[key] = parse(text)
                except ValueError:
                    raise ProtocolError(f"cluster parameter {line!r} is malformed") from None
        return cls(**values)


def _number(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise ValueError(text)
    return int(text)


def _one_of(*allowed: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in allowed:
            raise ValueError(text)
        return text

    return parse


def _matching(pattern: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if not re.fullmatch(pattern, text, re.IGNORECASE):
            raise ValueError(text)
        return text

    return parse


def _ip_size(text: str) -> int:
    return int(_one_of("16", "46")(text))


def _boolean(text: str) -> bool:
    return text.lower() in ("1", "true", "yes", "on")


_BY_TYPE: dict[str, Callable[[str], Any]] = {
    "bool": _boolean,
    "int": _number,
    "str": _matching(r"[0-9]{1,2}:[0-9]{1,2}"),
}
_PARSERS: dict[str, Callable[[str], Any]] = {
    item.name: _BY_TYPE[str(item.type)] for item in fields(Parameters)
} | {
    "id_type_in_filename": _one_of("ip", "id"),
    "response_ip_addr_size": _ip_size,
    "reserved_storage_space": _matching(r"[0-9.]{1,18}\s*(%|[KMGT]?B?)"),
}
