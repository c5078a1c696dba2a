"""What the kernel counts of TCP connections: tells how much was asked of a server.

Asks the kernel by netlink (sock_diag(7)), which needs no privileges and no tool.
"""

from __future__ import annotations

import socket
import struct

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_NLM_F_REQUEST_DUMP = 0x301
_NLMSG_DONE = 3
_NLMSG_ERROR = 2
_INET_DIAG_INFO = 2
_ALL_STATES = 0xFFFFFFFF

_MESSAGE = struct.Struct("=IHHII")
_REQUEST = struct.Struct("=BBBBI")
_SOCKET_ID_SIZE = 48
_RECORD_SIZE = 72  # struct inet_diag_msg
_ATTRIBUTE = struct.Struct("=HH")
_BYTES_ACKED_OFFSET = 120  # struct tcp_info


def bytes_sent_to(address: str) -> int:
    """Bytes that clients on this machine have sent to *address* over connections still open."""
    extensions = 1 << (_INET_DIAG_INFO - 1)
    request = _REQUEST.pack(socket.AF_INET, socket.IPPROTO_TCP, extensions, 0, _ALL_STATES)
    request += bytes(_SOCKET_ID_SIZE)
    head = _MESSAGE.pack(
        _MESSAGE.size + len(request), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST_DUMP, 1, 0
    )
    wanted = socket.inet_aton(address)
    total = 0
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as sock:
        sock.send(head + request)
        while True:
            data = sock.recv(1 << 20)
            while data:
                length, kind, _, _, _ = _MESSAGE.unpack_from(data)
                if kind == _NLMSG_DONE:
                    return total
                if kind == _NLMSG_ERROR:
                    raise OSError("the kernel has no sock_diag for TCP")
                total += _bytes_acked(data[_MESSAGE.size : length], wanted)
                data = data[(length + 3) & ~3 :]


def _bytes_acked(record: bytes, wanted: bytes) -> int:
    """Of one struct inet_diag_msg: bytes acknowledged by the peer, if it is the wanted one."""
    if record[24:28] != wanted:  # idiag_dst
        return 0
    attributes = record[_RECORD_SIZE:]
    while attributes:
        length, kind = _ATTRIBUTE.unpack_from(attributes)
        if kind == _INET_DIAG_INFO:
            return int(struct.unpack_from("=Q", attributes, 4 + _BYTES_ACKED_OFFSET)[0])
        attributes = attributes[(length + 3) & ~3 :]
    return 0
