"""What a connection to a peer notes of its progress."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
import trio

from fdfs_storage.replication import peer_link
from fdfs_storage.replication.outgoing import Row
from fdfs_storage.replication.peer_link import PeerLink
from fdfs_storage.replication.requests import Request
from fdfsfuse.client.link import Link
from fdfsfuse.core.conf_file import ServerAddress
from fdfsfuse.core.sync_plan import Send


@pytest.mark.parametrize("pieces", [1, 3])
@pytest.mark.parametrize("buffered", [True, False])
async def test_more_than_the_kernel_buffers_is_progress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pieces: int, buffered: bool
) -> None:
    """Also when it is in many pieces, none of which is much."""
    size = 30_000
    monkeypatch.setattr(peer_link, "_KERNEL_TAKES", size if buffered else size // 2)
    path = tmp_path / "file"
    path.write_bytes(bytes(size))
    with socket.create_server(("127.0.0.1", 0)) as server:
        sock = socket.create_connection(server.getsockname())
        sock.setblocking(False)
        receiving, _ = server.accept()
        host, port = server.getsockname()
        link = PeerLink(Link(sock, ServerAddress((host,), port), host, 60), None, 60)
        with receiving:
            link.progress_at = -1.0
            row = Row(link)
            each = size // pieces
            parts = [(b"", offset, each) for offset in range(0, size, each)]
            row.add([Request(Send.CREATE, b"head", b"", os.open(path, os.O_RDONLY), parts, size)])
            with trio.fail_after(60):
                await row.send()
            assert (link.progress_at == -1.0) == buffered
            link.close()
