"""What a storage sends to its peers: tables from protocol/cluster.md 4.3, 4.4 and 5.3 to 5.6."""

from __future__ import annotations

import pytest

from fdfsfuse.core.backlog import Backlog, content_bytes
from fdfsfuse.core.sync_plan import (
    Next,
    Own,
    Send,
    after_answer,
    begin,
    concerns,
    may_push,
    must_ask,
    plan,
)
from fdfsfuse.proto.binlog import BinlogRecord, decode_line
from fdfsfuse.proto.cluster import SyncSource
from fdfsfuse.proto.mark import Mark
from fdfsfuse.proto.tracker import ServerStatus

S = ServerStatus
NAME = "M00/00/00/fwAAFWsC6S-AbOvlAAAADcRYHyQ154.txt"
OTHER = "M00/00/00/fwAAFWsC6X2EaZluAAAAANiug8g022.log"
OLD = Mark(5, 500, need_sync_old=True, until=1000)
DONE = Mark(5, 500, need_sync_old=True, sync_old_done=True, until=1000)
NEWER = Mark(5, 500, until=1000)
ME = SyncSource("me", 2000)
THEM = SyncSource("them", 2000)


def record(op: str, timestamp: int = 900) -> BinlogRecord:
    extra = {"A": " 10 5", "M": " 10 5", "T": " 20 4", "L": f" {OTHER}", "R": f" {OTHER}"}
    return decode_line(f"{timestamp} {op} {NAME}{extra.get(op.upper(), '')}\n".encode())


@pytest.mark.parametrize(
    ("mark", "status", "ask"),
    [
        (None, S.ACTIVE, True),
        (NEWER, S.ACTIVE, False),
        (NEWER, S.OFFLINE, False),
        (NEWER, S.WAIT_SYNC, True),
        (OLD, S.SYNCING, True),
        (DONE, S.INIT, True),
    ],
)
def test_when_the_trackers_are_asked(mark: Mark | None, status: ServerStatus, ask: bool) -> None:
    assert must_ask(mark, status) is ask


@pytest.mark.parametrize(
    ("mark", "status", "source", "begun"),
    [
        (None, S.ACTIVE, None, Mark()),
        (None, S.ACTIVE, THEM, Mark(until=2000)),
        (None, S.WAIT_SYNC, ME, Mark(need_sync_old=True, until=2000)),
        (DONE, S.WAIT_SYNC, ME, Mark(need_sync_old=True, until=2000)),  # it has come back empty
        (OLD, S.SYNCING, ME, OLD),  # one of us was restarted
        (DONE, S.SYNCING, ME, DONE),  # and had not told that it is complete
        (NEWER, S.SYNCING, ME, Mark(need_sync_old=True, until=2000)),
        (NEWER, S.SYNCING, THEM, NEWER),
        (NEWER, S.WAIT_SYNC, THEM, Mark(until=2000)),
    ],
)
def test_where_it_begins(
    mark: Mark | None, status: ServerStatus, source: SyncSource | None, begun: Mark
) -> None:
    assert begin(mark, status, "me", source) == begun


def test_only_the_source_pushes_to_a_new_member() -> None:
    assert may_push(OLD, S.WAIT_SYNC)
    assert may_push(OLD, S.SYNCING)
    assert may_push(DONE, S.ACTIVE)
    assert may_push(NEWER, S.ACTIVE)
    for status in (S.WAIT_SYNC, S.SYNCING, S.OFFLINE, S.RECOVERY, S.INIT):
        assert not may_push(NEWER, status)


@pytest.mark.parametrize(
    ("mark", "timestamp", "sent"),
    [
        (NEWER, 900, "CDUAMTLR"),
        (OLD, 1000, "CDUAMTLRcdulr"),
        (OLD, 1001, "CDUAMTLR"),
        (DONE, 1000, "CDUAMTLRcdulr"),  # it came late; nobody else sends it
        (DONE, 1001, "CDUAMTLR"),
    ],
)
def test_which_records_are_for_a_peer(mark: Mark, timestamp: int, sent: str) -> None:
    ops = "CDUAMTLRcduamtlr"
    assert "".join(op for op in ops if concerns(record(op, timestamp), mark)) == sent


@pytest.mark.parametrize(
    ("op", "reusable", "own", "sent"),
    [
        ("C", False, Own(13), Send.CREATE),
        ("c", False, Own(13), Send.CREATE),
        ("C", False, None, Send.SKIP),
        ("C", True, Own(13, is_link=True), Send.SKIP),  # its L record follows
        ("U", True, Own(3), Send.UPDATE),
        ("U", True, None, Send.SKIP),
        ("D", False, None, Send.DELETE),
        ("D", False, Own(13), Send.SKIP),
        ("D", True, Own(13), Send.UPDATE),  # the name is in use again
        ("A", False, Own(15), Send.APPEND),
        ("A", False, Own(14), Send.MODIFY),  # what is left of it
        ("A", False, Own(10), Send.SKIP),
        ("A", False, None, Send.SKIP),
        ("M", False, Own(15), Send.MODIFY),
        ("M", False, Own(14), Send.MODIFY),
        ("M", False, Own(10), Send.SKIP),
        ("T", False, Own(4), Send.TRUNCATE),
        ("T", False, None, Send.SKIP),
        ("L", False, Own(50, is_link=True), Send.LINK),
        ("L", False, None, Send.SKIP),
        ("R", False, Own(13), Send.RENAME),
    ],
)
def test_what_a_record_is_sent_as(op: str, reusable: bool, own: Own | None, sent: Send) -> None:
    assert plan(record(op), own, reusable=reusable) is sent


def test_bytes_that_may_be_lost_are_sent_whatever_the_size() -> None:
    assert plan(record("A"), Own(15), again=True) is Send.MODIFY
    assert plan(record("A"), Own(11), again=True) is Send.MODIFY
    assert plan(record("A"), Own(10), again=True) is Send.SKIP
    assert plan(record("C"), Own(13), again=True) is Send.CREATE


@pytest.mark.parametrize(
    ("sent", "status", "then"),
    [
        (Send.CREATE, 0, Next.DONE),
        (Send.CREATE, 17, Next.DONE),
        (Send.CREATE, 28, Next.FAIL),
        (Send.CREATE, 74, Next.EXAMINE),
        (Send.UPDATE, 17, Next.DONE),
        (Send.UPDATE, 2, Next.FAIL),
        (Send.DELETE, 0, Next.DONE),
        (Send.DELETE, 2, Next.DONE),
        (Send.APPEND, 17, Next.DONE),
        (Send.APPEND, 2, Next.SEND_UPDATE),
        (Send.MODIFY, 2, Next.SEND_UPDATE),
        (Send.TRUNCATE, 0, Next.DONE),
        (Send.TRUNCATE, 17, Next.COMPARE_CONTENT),
        (Send.TRUNCATE, 2, Next.SEND_CREATE),
        (Send.TRUNCATE, 27, Next.FAIL),
        (Send.LINK, 0, Next.DONE),
        (Send.LINK, 2, Next.FAIL),
        (Send.RENAME, 0, Next.COMPARE_SIZE),
        (Send.RENAME, 17, Next.DONE),
        (Send.RENAME, 2, Next.SEND_CREATE),
        (Send.RENAME, 22, Next.FAIL),
    ],
)
def test_what_an_answer_means(sent: Send, status: int, then: Next) -> None:
    assert after_answer(sent, status) is then


def test_content_of_records() -> None:
    assert content_bytes(record("C")) == 13
    assert content_bytes(record("A")) == 5
    assert content_bytes(record("D")) == 0
    assert content_bytes(BinlogRecord(1, "C", "M00/00/00/x-m")) == 0


def test_backlog() -> None:
    backlog = Backlog(100, 5000, 900)
    assert backlog.delay_s(1000.0) == 100.0
    assert backlog.delay_s(800.0) == 0.0
    assert backlog.estimate_s(50.0) == 2.0
    assert backlog.estimate_s(0.0) is None
    assert Backlog().estimate_s(0.0) == 0.0
    assert Backlog().delay_s(1000.0) == 0.0
    assert backlog.scaled(2.5) == Backlog(250, 12500, 900)
