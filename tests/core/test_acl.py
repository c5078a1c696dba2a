"""What holds for every POSIX ACL; tests/mount/test_posix_acl.py compares with Linux."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fdfsfuse.core import acl
from fdfsfuse.core.acl import GROUP, MASK, OTHERS, OWNER, OWNING_GROUP, USER, Entry

PERMS = st.integers(0, 7)
MODES = st.integers(0, 0o7777)


@st.composite
def acls(draw: Any) -> list[Entry]:
    ids = st.lists(st.integers(0, 2**32 - 2), unique=True, max_size=3)
    users = [Entry(USER, draw(PERMS), number) for number in draw(ids)]
    groups = [Entry(GROUP, draw(PERMS), number) for number in draw(ids)]
    wanted: bool = draw(st.booleans())
    mask = [Entry(MASK, draw(PERMS))] if users or groups or wanted else []
    owner, group, others = (Entry(tag, draw(PERMS)) for tag in (OWNER, OWNING_GROUP, OTHERS))
    return [owner, *users, group, *groups, *mask, others]


@given(acls())
def test_encoding(entries: list[Entry]) -> None:
    value = acl.encode(entries)
    assert len(value) == 4 + 8 * len(entries)
    assert acl.decode(value) == entries
    for end in range(len(value)):
        with pytest.raises(ValueError, match=r"ACL|entry|order"):
            acl.decode(value[:end])


@given(st.binary(max_size=60))
def test_any_bytes(value: bytes) -> None:
    try:
        entries = acl.decode(value)
    except ValueError:
        return
    assert acl.encode(entries) == value


@given(acls(), MODES)
def test_chmod_sets_the_mode_and_nothing_else(entries: list[Entry], mode: int) -> None:
    after = acl.after_chmod(entries, mode)
    assert acl.permissions(after) == mode & 0o777
    assert [entry[::2] for entry in after] == [entry[::2] for entry in entries]
    assert [e for e in after if e.tag in (USER, GROUP)] == [
        e for e in entries if e.tag in (USER, GROUP)
    ]


@given(acls(), MODES)
def test_what_is_made_gets_no_more_than_was_asked_for(default: list[Entry], mode: int) -> None:
    entries, new_mode = acl.inherit(default, mode)
    assert new_mode & ~mode == 0
    assert new_mode & 0o7000 == mode & 0o7000
    assert acl.permissions(entries) == new_mode & 0o777
    assert all(new.perm & ~old.perm == 0 for new, old in zip(entries, default, strict=True))
