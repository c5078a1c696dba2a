"""Reading from trio streams as tests need it."""

from __future__ import annotations

import trio
from trio.abc import ReceiveStream


async def receive(stream: ReceiveStream, count: int) -> bytes:
    """*count* bytes, fewer when the other side closes or resets the connection before."""
    data = b""
    while len(data) < count:
        try:
            chunk = await stream.receive_some(count - len(data))
        except trio.BrokenResourceError:
            break
        if not chunk:
            break
        data += chunk
    return data
