"""What a storage does with what its peers send: tables from protocol/cluster.md 5.3 to 5.6."""

from __future__ import annotations

import pytest

from fdfsfuse.core.replicas import (
    Found,
    Nature,
    RangeVerdict,
    Subject,
    Verdict,
    is_orphaned,
    judge_append,
    judge_modify,
    judge_truncate,
    judge_whole,
    outlives,
    subject_of,
)

NORMAL = "M00/00/00/fwAAC2sC71qAc1b5AAAACw1KEYU551.txt"
APPENDER = "M00/00/00/fwAAC2sC71yEb4YYAAAAACWd5eY757.log"
SLAVE = "M00/00/00/fwAAC2sC71qAc1b5AAAACw1KEYU551_150x150.jpg"
TRUNK = "M00/00/00/fwAAM2sC712IPPAcAAAAC9a6vZkAAAAAQAAAgAAAAEA400.txt"

FIXED = Subject(Nature.FIXED, 11, 1)
GROWING = Subject(Nature.GROWING)
REPLACED = Subject(Nature.REPLACED)


@pytest.mark.parametrize(
    ("name", "nature"),
    [
        (NORMAL, Nature.FIXED),
        ("M01/00/00/fwAADGsC71uAEKgjAAAAAAAAAAA9294680", Nature.FIXED),  # no extension
        ("M01/00/00/fwAAC2sC71uABYuZAAAADC_9g3U.tar.gz", Nature.FIXED),  # no pad digits
        (TRUNK, Nature.FIXED),
        (APPENDER, Nature.GROWING),
        (SLAVE, Nature.REPLACED),
        (NORMAL + "-m", Nature.REPLACED),
        (APPENDER + "-m", Nature.REPLACED),
        (TRUNK[:-4] + "_150x150.jpg", Nature.REPLACED),  # the slave of a file in a trunk file
        ("M00/00/00/fwAAC2sC71qAc1b5AAAACw1KEYU551_1", Nature.REPLACED),  # a short slave
        ("M00/00/00/fwAAC2sC71qAc1b5AAAACw1KEYU551_xyz", Nature.REPLACED),  # as long as normal
        ("M00/00/00/something else", Nature.REPLACED),
    ],
)
def test_what_a_name_says(name: str, nature: Nature) -> None:
    assert subject_of(name).nature is nature


def test_size_and_crc_of_a_normal_file() -> None:
    assert subject_of(NORMAL) == Subject(Nature.FIXED, 11, 0x0D4A1185)


@pytest.mark.parametrize(
    ("subject", "size", "timestamp", "found", "deleted_at", "update", "verdict"),
    [
        # normal files: the name tells
        (FIXED, 11, 50, None, None, False, Verdict.STORE),
        (FIXED, 10, 50, None, None, False, Verdict.REFUSE),
        (FIXED, 11, 50, Found(11, 90), None, False, Verdict.COMPARE),
        (FIXED, 10, 50, Found(11, 90), None, True, Verdict.COMPARE),  # perhaps ours is right
        (FIXED, 11, 50, Found(5, 90), None, False, Verdict.STORE),
        (FIXED, 5, 50, Found(5, 90), None, True, Verdict.REFUSE),
        (FIXED, 11, 50, None, 10, False, Verdict.KEEP),  # deleted names are never used again
        (FIXED, 11, 50, None, 99, True, Verdict.KEEP),
        # appenders: whole copies must not undo what was appended
        (GROWING, 7, 50, None, None, False, Verdict.STORE),
        (GROWING, 7, 50, None, 10, False, Verdict.KEEP),
        (GROWING, 7, 50, Found(7, 50), None, False, Verdict.KEEP),
        (GROWING, 7, 50, Found(9, 50), None, False, Verdict.KEEP),
        (GROWING, 9, 50, Found(7, 50), None, False, Verdict.STORE),
        (GROWING, 9, 50, Found(7, 51), None, False, Verdict.KEEP),
        (GROWING, 5, 50, Found(9, 99), None, True, Verdict.STORE),
        # slaves and metadata: the later one
        (REPLACED, 3, 50, None, None, False, Verdict.STORE),
        (REPLACED, 3, 50, None, 50, False, Verdict.STORE),
        (REPLACED, 3, 50, None, 51, False, Verdict.KEEP),
        (REPLACED, 3, 50, Found(4, 50), None, False, Verdict.STORE),
        (REPLACED, 3, 50, Found(3, 50), None, False, Verdict.COMPARE),
        (REPLACED, 3, 50, Found(3, 51), None, False, Verdict.KEEP),
        (REPLACED, 3, 50, Found(4, 51), None, True, Verdict.KEEP),
        (REPLACED, 3, 50, Found(4, 49), 90, True, Verdict.STORE),  # it was made again since
    ],
)
def test_whole_files(
    subject: Subject,
    size: int,
    timestamp: int,
    found: Found | None,
    deleted_at: int | None,
    update: bool,
    verdict: Verdict,
) -> None:
    assert judge_whole(subject, size, timestamp, found, deleted_at, update=update) is verdict


@pytest.mark.parametrize(
    ("offset", "length", "found", "verdict"),
    [
        (10, 5, 10, RangeVerdict.WRITE),
        (10, 5, 15, RangeVerdict.DONE),
        (10, 5, 20, RangeVerdict.DONE),
        (10, 5, 12, RangeVerdict.MISSING),
        (10, 5, 9, RangeVerdict.MISSING),
        (0, 5, None, RangeVerdict.MISSING),
        (0, 0, 0, RangeVerdict.WRITE),
    ],
)
def test_appended_bytes(offset: int, length: int, found: int | None, verdict: RangeVerdict) -> None:
    assert judge_append(offset, length, found) is verdict


@pytest.mark.parametrize(
    ("offset", "found", "verdict"),
    [
        (10, 10, RangeVerdict.WRITE),
        (0, 10, RangeVerdict.WRITE),
        (10, 9, RangeVerdict.MISSING),
        (0, None, RangeVerdict.MISSING),
    ],
)
def test_modified_bytes(offset: int, found: int | None, verdict: RangeVerdict) -> None:
    assert judge_modify(offset, found) is verdict


def test_holes_are_filled_by_what_follows() -> None:
    assert judge_modify(10, 9, holes=True) is RangeVerdict.WRITE
    assert judge_modify(10, None, holes=True) is RangeVerdict.MISSING


@pytest.mark.parametrize(
    ("old", "found", "verdict"),
    [
        (10, 10, RangeVerdict.WRITE),
        (10, 4, RangeVerdict.DONE),
        (10, None, RangeVerdict.DONE),
    ],
)
def test_truncation(old: int, found: int | None, verdict: RangeVerdict) -> None:
    assert judge_truncate(old, found) is verdict


@pytest.mark.parametrize(
    ("master", "timestamp", "deleted_at", "exists", "orphaned"),
    [
        (FIXED, 50, None, True, False),
        (FIXED, 50, None, False, False),  # the file may be on its way
        (FIXED, 50, 40, False, True),  # names are given once
        (GROWING, 50, 40, False, True),
        (REPLACED, 50, 40, False, False),  # a slave that was made again may be on its way
        (REPLACED, 50, 50, False, True),
        (REPLACED, 50, 60, True, False),
    ],
)
def test_orphaned_metadata(
    master: Subject, timestamp: int, deleted_at: int | None, exists: bool, orphaned: bool
) -> None:
    assert is_orphaned(master, timestamp, deleted_at, exists=exists) is orphaned
    if orphaned:
        verdict = judge_whole(REPLACED, 3, timestamp, None, None, update=False, orphaned=True)
        assert verdict is Verdict.KEEP


def test_deletion_elsewhere_is_the_later_change_of_one_second() -> None:
    """A creation that is sent again after a restart does not undo it."""
    for timestamp, verdict in ((49, Verdict.KEEP), (50, Verdict.KEEP), (51, Verdict.STORE)):
        found = judge_whole(REPLACED, 3, timestamp, None, 50, update=False, deleted_elsewhere=True)
        assert found is verdict


@pytest.mark.parametrize(
    ("nature", "found", "outlived"),
    [
        (Nature.REPLACED, Found(1, 51), True),
        (Nature.REPLACED, Found(1, 50), False),
        (Nature.REPLACED, None, False),
        (Nature.FIXED, Found(1, 99), False),  # names are given once
        (Nature.GROWING, Found(1, 99), False),
    ],
)
def test_what_a_deletion_elsewhere_leaves(
    nature: Nature, found: Found | None, outlived: bool
) -> None:
    assert outlives(nature, found, 50) is outlived
