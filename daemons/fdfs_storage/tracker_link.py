"""How a storage connects to its trackers: from bind_addr, again and again."""

from __future__ import annotations

import random

from fdfsfuse.client.link import Link, connect_link
from fdfsfuse.core.config import ServerAddress, StorageConfig

_FIRST_RETRY_S = 0.1


class Retry:
    """Growing delays with some chance in them, so that many storages do not come at once."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._delay_s = _FIRST_RETRY_S

    def next_delay(self, limit_s: float | None = None) -> float:
        delay_s = self._delay_s
        self._delay_s = min(delay_s * 2, limit_s or self._limit_s)
        return delay_s * random.uniform(0.8, 1.2)

    def reset(self) -> None:
        self._delay_s = _FIRST_RETRY_S


async def connect(server: ServerAddress, config: StorageConfig) -> Link:
    """Connect to a tracker. Raises ConnectFailed."""
    return await connect_link(
        server,
        bind=config.bind_addr if config.client_bind else (),
        connect_timeout_s=config.connect_timeout_s,
        timeout_s=config.network_timeout_s,
    )


async def ask_once(
    server: ServerAddress, config: StorageConfig, command: int, body: bytes = b""
) -> bytes:
    """One request on a connection of its own. Raises one of `fdfsfuse.client.link.PROBLEMS`."""
    link = await connect(server, config)
    try:
        return await link.request(command, body)
    finally:
        link.close()
