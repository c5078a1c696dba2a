"""Recovery of a lost disk: whom to ask, what to list (protocol/cluster.md section 7)."""

from __future__ import annotations

import pytest

from fdfsfuse.core.recovery import (
    Content,
    Way,
    choose_source,
    choose_way,
    list_entry,
    promised_content,
)
from fdfsfuse.core.storage_ids import RW_BOTH, RW_NONE, RW_READ, RW_WRITE
from fdfsfuse.proto.binlog import BinlogRecord, decode_line
from fdfsfuse.proto.fileid import Location, encode_base
from fdfsfuse.proto.tracker import ServerStatus, StorageStat

ACTIVE, OFFLINE = ServerStatus.ACTIVE, ServerStatus.OFFLINE


def member(
    storage_id: str,
    status: ServerStatus = ACTIVE,
    rw_mode: int = RW_BOTH,
    paths: int = 2,
) -> StorageStat:
    return StorageStat(
        *(status, rw_mode, storage_id, storage_id, "", "6.16.1", 0, 0, 0, 0, 0, 10),
        *(paths, 256, 0, 23000),
    )


@pytest.mark.parametrize(
    ("status", "others", "way"),
    [
        (OFFLINE, [member("b")], Way.RECOVER),
        (ServerStatus.RECOVERY, [member("b")], Way.RECOVER),
        (ServerStatus.SYNCING, [member("b")], Way.RECOVER),
        # Somebody has the files, although not now.
        (OFFLINE, [member("b", OFFLINE)], Way.RECOVER),
        (OFFLINE, [], Way.REFUSE),
        (None, [], Way.REFUSE),
        (OFFLINE, [member("b", ServerStatus.DELETED)], Way.REFUSE),
        (OFFLINE, [member("b", ServerStatus.IP_CHANGED)], Way.REFUSE),
        (None, [member("b")], Way.JOIN_AS_NEW),
        (ServerStatus.INIT, [member("b")], Way.JOIN_AS_NEW),
        (ServerStatus.DELETED, [member("b")], Way.JOIN_AS_NEW),
        (OFFLINE, [member("b", paths=1)], Way.NOTHING),
    ],
)
def test_way(status: ServerStatus | None, others: list[StorageStat], way: Way) -> None:
    assert choose_way(status, [member("a", OFFLINE), *others], "a", 1) is way


def test_sources_are_active_readable_and_take_turns() -> None:
    members = [
        member("a"),
        member("b", OFFLINE),
        member("c", rw_mode=RW_WRITE),
        member("d", rw_mode=RW_READ),
        member("e", rw_mode=RW_NONE),
        member("f"),
    ]
    chosen = [choose_source(members, "a", turn) for turn in range(4)]
    assert [source and source.storage_id for source in chosen] == ["d", "f", "d", "f"]
    assert choose_source(members[:3], "a", 0) is None


def name(*, appender: bool = False) -> str:
    base = encode_base(bytes(4), 1795352879, 7, 0x1234, "123.txt", 5, appender=appender)
    return f"M01/00/0A/{base}"


NAME = name()


@pytest.mark.parametrize(
    ("line", "found", "listed"),
    [
        ("C {}", "", "C {}"),
        ("c {}", "", "c {}"),
        ("C {}-m", "", "C {}-m"),
        # What is on the disk now decides.
        ("C {}", None, None),
        ("L {} M01/00/0B/x", "M01/00/0B/y", "L {} M01/00/0B/y"),
        ("L {} M01/00/0B/x", "", "C {}"),
        ("C {}", "M01/00/0B/y", "L {} M01/00/0B/y"),
        ("R {} M01/00/0A/old", "", "C {}"),
        ("r {} M01/00/0A/old", "", "c {}"),
        # Others say nothing about whether there is a file.
        ("U {}", "", None),
        ("A {} 0 5", "", None),
        ("D {}", "", None),
    ],
)
def test_list(line: str, found: str | None, listed: str | None) -> None:
    record = decode_line(f"1795352879 {line.format(NAME)}\n".encode())
    looked: list[Location] = []

    def look(location: Location) -> str | None:
        looked.append(location)
        return found

    entry = list_entry(record, 1, look, 2)
    expected = f"1795352879 {listed.format(NAME)}\n".encode() if listed is not None else None
    assert (entry.encode() if entry is not None else None) == expected
    assert list_entry(record, 0, look, 2) is None
    assert {location.path_index for location in looked} <= {1}


def test_store_path_that_is_gone_is_not_listed() -> None:
    record = BinlogRecord(1795352879, "C", NAME)
    assert list_entry(record, 1, lambda _: "", 1) is None


def test_only_normal_names_promise_their_content() -> None:
    assert promised_content(NAME) == Content(7, 0x1234)
    assert promised_content(NAME + "-m") is None
    assert promised_content(name(appender=True)) is None
    slave = NAME[:-4] + "_150x150.jpg"
    assert promised_content(slave) is None
    assert promised_content("M00/00/00/000001") is None
