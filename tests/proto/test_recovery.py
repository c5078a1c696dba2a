"""Messages and files of the recovery of a lost disk."""

from __future__ import annotations

import pytest

from fdfsfuse.errors import ProtocolError
from fdfsfuse.proto.header import HEADER_SIZE, RESPONSE, unpack_header
from fdfsfuse.proto.recovery import (
    FETCH_PATH_BINLOG,
    STREAM_LENGTH,
    PathBinlogRequest,
    RecoveryFlag,
    decode_mark,
    encode_mark,
)
from fdfsfuse.proto.tracker import ServerStatus
from tests.common.vectors import load, named


def test_request_and_answer_are_those_of_the_reference() -> None:
    vector = named("fetch_one_path_binlog", load("cluster.json"))
    header = unpack_header(vector.request[:HEADER_SIZE])
    assert header.command == FETCH_PATH_BINLOG
    request = PathBinlogRequest("group1", 0)
    assert vector.request[HEADER_SIZE:] == request.encode()
    assert PathBinlogRequest.decode(request.encode()) == request
    answer = unpack_header(vector.response[:HEADER_SIZE])
    assert (answer.length, answer.command) == (STREAM_LENGTH, RESPONSE)


@pytest.mark.parametrize("length", [0, 16, 18])
def test_wrong_length(length: int) -> None:
    with pytest.raises(ProtocolError):
        PathBinlogRequest.decode(bytes(length))


@pytest.mark.parametrize(
    ("flag", "text"),
    [
        (
            RecoveryFlag(),
            b"saved_storage_status=99\nfetch_binlog_done=0\nrecovery_threads=1\n",
        ),
        (
            RecoveryFlag(ServerStatus.RECOVERY, True, 3),
            b"saved_storage_status=9\nfetch_binlog_done=1\nrecovery_threads=3\n",
        ),
    ],
)
def test_flag(flag: RecoveryFlag, text: bytes) -> None:
    assert flag.encode() == text
    assert RecoveryFlag.decode(text) == flag
    assert RecoveryFlag.decode(b"\0" * 70) == RecoveryFlag()


def test_mark() -> None:
    assert encode_mark(123) == b"binlog_offset=123\n"
    assert decode_mark(encode_mark(123)) == 123
    assert decode_mark(b"") == decode_mark(b"binlog_offset=-5\n") == decode_mark(b"\xff") == 0
