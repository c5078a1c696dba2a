"""The answer to the kernel's first request gets flags that libfuse does not know of."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator

import pytest
import trio

from fdfsfuse.fuse.handshake import Handshake

FLAG = 1 << 28
INIT = struct.pack("=IIQQIIIIIIII", 56, 26, 2, 0, 0, 0, 0, 0, 7, 45, 1 << 17, 0x40000000)
LATER = struct.pack("=IIQQIIII", 40, 3, 4, 1, 0, 0, 0, 0)


def answer(flags: int) -> bytes:
    """fuse_out_header and fuse_init_out of protocol version 7.38."""
    init = struct.pack("=IIIIHHIIHHI28x", 7, 38, 1 << 17, flags, 12, 9, 1 << 20, 1, 256, 0, 0)
    return struct.pack("=IiQ", 16 + len(init), 0, 2) + init


@pytest.fixture
def device() -> Iterator[tuple[socket.socket, int]]:
    """The kernel's end, and the device."""
    kernel, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with kernel, ours:
        kernel.setblocking(False)
        yield kernel, ours.fileno()


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        (answer(0x40000021), answer(0x40000021 | FLAG)),
        (answer(FLAG), answer(FLAG)),
        (struct.pack("=IiQ", 16, -71, 2), struct.pack("=IiQ", 16, -71, 2)),
    ],
)
async def test_flags_are_added(
    given: bytes, sent: bytes, device: tuple[socket.socket, int]
) -> None:
    kernel, fd = device
    done = trio.Event()
    descriptors = len(os.listdir("/proc/self/fd"))
    handshake = Handshake(FLAG, trio.lowlevel.wait_readable, done.set)
    with trio.fail_after(60):
        kernel.send(INIT)
        await handshake.wait_readable(fd)
        assert os.read(fd, 1 << 17) == INIT
        os.write(fd, given)
        with pytest.raises(BlockingIOError):
            kernel.recv(1 << 17)
        assert not done.is_set()
        kernel.send(LATER)
        await handshake.wait_readable(fd)
    assert done.is_set()
    assert kernel.recv(1 << 17) == sent
    assert os.read(fd, 1 << 17) == LATER
    assert not os.get_inheritable(fd)
    assert len(os.listdir("/proc/self/fd")) == descriptors


async def test_no_answer(
    device: tuple[socket.socket, int], caplog: pytest.LogCaptureFixture
) -> None:
    kernel, fd = device
    handshake = Handshake(FLAG, trio.lowlevel.wait_readable, lambda: None)
    with trio.fail_after(60):
        kernel.send(INIT)
        await handshake.wait_readable(fd)
        kernel.send(LATER)
        await handshake.wait_readable(fd)
    assert os.read(fd, 1 << 17) == LATER
    assert "is not answered" in caplog.text


async def test_a_device_without_a_request_is_left_to_libfuse() -> None:
    """After an unmount reading fails: so does libfuse's, which ends the mount."""
    done = trio.Event()

    async def readable(fd: int) -> None:
        await trio.lowlevel.checkpoint()

    fd = os.open("/", os.O_RDONLY)
    try:
        await Handshake(FLAG, readable, done.set).wait_readable(fd)
        with pytest.raises(IsADirectoryError):
            os.read(fd, 1)
    finally:
        os.close(fd)
    assert done.is_set()
