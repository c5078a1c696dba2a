"""Reading the header of an answer; both clients do it here."""

from __future__ import annotations

from fdfsfuse.client.address import Address
from fdfsfuse.errors import ProtocolError, StatusError
from fdfsfuse.proto.header import RESPONSE, unpack_fields

SKIP_MAX = 1 << 20
"""Longest body that is skipped where none is expected (wire.md section 5, trap 5)."""


def answer_length(address: Address, data: bytes | bytearray) -> int:
    """The length of the body that the header at the start of *data* announces.

    Raises:
        StatusError: the answer is a status.
        ProtocolError: it is no answer.
    """
    length: int
    length, command, status = unpack_fields(data)
    if command != RESPONSE or length < 0:
        raise ProtocolError(f"{address} answered with command {command}, {length} bytes")
    if status:
        if length:
            raise ProtocolError(f"{address} sent an error with a body")
        raise StatusError(status, str(address))
    return length


def check_length(address: Address, length: int, limit: int) -> None:
    """Raises ProtocolError when a body has more than *limit* bytes; `steps.SKIP` is no limit."""
    if limit < 0:
        limit = SKIP_MAX
    if length > limit:
        raise ProtocolError(
            f"{address} announced {length} bytes where at most {limit} are expected"
        )


def sent_too_much(address: Address) -> ProtocolError:
    """More bytes came than the header announced."""
    return ProtocolError(f"{address} sent more than it announced")
