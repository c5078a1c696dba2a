"""Power loss: the state reached the disk, the object files that it names did not."""

from __future__ import annotations

from pathlib import Path

import pytest

from fdfs_storage import boot
from fdfsfuse.proto import names
from tests.common.names_server import open_tree
from tests.daemons.test_names_crash import (
    NOW,
    check,
    create,
    dump,
    make_file,
    objects_on_disk,
    put,
    together,
)


@pytest.mark.parametrize("how", ["missing", "empty", "torn"])
async def test_a_new_boot_brings_lost_objects_back(
    tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_tree(tmp_path, names_garbage_grace_s=0.0) as tree:
        await together(tree, [create(b"a"), put(tree, b"a", b"old"), create(b"b")])
        await together(tree, [put(tree, b"a", b"new a"), put(tree, b"b", b"content of b")])
        await together(
            tree,
            [names.ReserveInodes(1), make_file(tree, b"c", b"content of c", {b"user.k": b"w"})],
        )
        ino = tree.state.db.execute("SELECT ino FROM dirent WHERE name = x'62'").fetchone()[0]
        request = names.SetXattr(ino, b"user.k", b"v", 0, NOW)
        await together(tree, [lambda: tree.preparer.set_xattr(request)])
        named = {row[0] for row in tree.state.db.execute("SELECT file_id FROM inode")} - {None}
        expected, state = objects_on_disk(tmp_path), dump(tree)
    assert len(named) == 3
    assert len(expected) == 6  # a, the old a (garbage), b and c with metadata
    for file_id in expected:
        path = tmp_path / "data" / file_id[4:]
        if how == "missing":
            path.unlink()
        elif how == "empty" or file_id.endswith("-m"):
            path.write_bytes(b"")
        else:
            path.write_bytes(path.read_bytes()[:-1] + b"\0")

    async with open_tree(tmp_path, run=False) as tree:
        assert "wrote" not in caplog.text  # the same boot: nothing was looked at

    monkeypatch.setattr(boot, "boot_id", lambda: "another boot")
    async with open_tree(tmp_path, run=False) as tree:
        assert dump(tree) == state
        check(tree, tmp_path)
    assert "wrote 3 objects again" in caplog.text
    found = objects_on_disk(tmp_path)
    wanted = {name for name in expected if name in named or name.endswith("-m")}
    assert {name: found[name] for name in wanted} == {name: expected[name] for name in wanted}

    caplog.clear()
    async with open_tree(tmp_path, run=False):
        assert "wrote" not in caplog.text  # noted: this boot has been dealt with


async def test_objects_that_were_deleted_stay_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_tree(tmp_path, names_garbage_grace_s=0.0, names_session_lease_s=0.05) as tree:
        await together(tree, [create(b"a"), put(tree, b"a", b"old")])
        (old,) = objects_on_disk(tmp_path)
        await together(tree, [put(tree, b"a", b"new")])
        while old in objects_on_disk(tmp_path):
            await tree.housekeeping.collect()
    (tmp_path / "data" / old[4:]).write_bytes(b"old")  # the unlink had not reached the disk
    monkeypatch.setattr(boot, "boot_id", lambda: "another boot")
    async with open_tree(tmp_path, run=False) as tree:
        check(tree, tmp_path)
    assert list(objects_on_disk(tmp_path).values()) == [b"new"]
