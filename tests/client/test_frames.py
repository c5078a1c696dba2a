"""Frames of a names session, as a kernel takes them."""

from __future__ import annotations

import socket

import trio

from fdfsfuse.client.names.frames import FrameWriter


async def test_a_frame_that_the_kernel_has_taken_need_not_have_left() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        with socket.create_connection(server.getsockname()) as sock, server.accept()[0] as peer:
            sock.setblocking(False)
            stream = trio.SocketStream(trio.socket.from_stdlib_socket(peer))
            failures: list[None] = []
            async with trio.open_nursery() as nursery:
                writer = FrameWriter(sock, nursery, lambda: failures.append(None))
                writer.write(b"head", b"body")
                assert writer.all_sent()
                written = 8
                while writer.all_sent():
                    writer.write(b"head", bytes(1000))
                    written += 1004
                while not writer._backlog:
                    writer.write(b"head", bytes(100_000))
                    written += 100_004
                assert not writer.all_sent()
                with trio.fail_after(60):
                    while written:
                        written -= len(await stream.receive_some(1 << 20))
                    while not writer.all_sent():  # noqa: ASYNC110
                        await trio.sleep(0.001)
                writer.close()
                assert not writer.all_sent()
            assert not failures
