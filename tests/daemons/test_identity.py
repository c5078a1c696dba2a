"""Who a storage is: .data_init_flag and the marks of store paths (protocol/disk.md 2 and 3)."""

from __future__ import annotations

import base64
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fdfs_storage.cluster.identity import MARK_NAME, Identity, make_mark
from fdfsfuse.errors import ConfigError
from fdfsfuse.proto.cluster import SyncSource

NOW = 0x6B02EC41


@pytest.fixture
def paths(tmp_path: Path) -> list[str]:
    return [str(tmp_path / name) for name in ("path0", "path1")]


def load(base: Path) -> Identity:
    return Identity.load(base / "base", NOW)


def mark_file(path: str) -> Path:
    return Path(path) / "data" / MARK_NAME


def fill(path: str) -> None:
    """What every store path has after its first start."""
    (Path(path) / "data" / "00" / "00").mkdir(parents=True, exist_ok=True)


def test_a_new_storage(tmp_path: Path) -> None:
    identity = load(tmp_path)
    assert (identity.join_time, identity.sync_old_done, identity.source) == (
        NOW,
        False,
        SyncSource(),
    )
    assert Identity.load(tmp_path / "base", NOW + 99).join_time == NOW, "kept from the first start"


def test_the_decision_is_kept(tmp_path: Path) -> None:
    identity = load(tmp_path)
    identity.decide_source(SyncSource("10.0.0.2", 77))
    again = load(tmp_path)
    assert again.sync_old_done
    assert again.source == SyncSource("10.0.0.2", 77)
    again.decide_source(None)
    assert load(tmp_path).source == SyncSource()


def test_keys_of_a_c_server_are_kept(tmp_path: Path) -> None:
    flag = tmp_path / "base" / "data" / ".data_init_flag"
    flag.parent.mkdir(parents=True)
    flag.write_text(
        "# made by a C server\nstorage_join_time=5\nsync_old_done=1\nsync_src_server=\n"
        "sync_until_timestamp=0\nlast_ip_addr=10.0.0.1\nlast_server_port=23000\n"
        "current_trunk_file_id=3\ntrunk_last_compress_time=0\nstore_path_mark0=abc\n"
    )
    identity = load(tmp_path)
    assert (identity.join_time, identity.last_ip_addr, identity.last_server_port) == (
        5,
        "10.0.0.1",
        23000,
    )
    identity.save()
    text = flag.read_text()
    assert "current_trunk_file_id=3\n" in text
    assert "store_path_mark0=abc\n" in text
    assert not list(flag.parent.glob("*.tmp"))


@pytest.mark.parametrize("missing", ["storage_join_time", "sync_old_done", "sync_src_server"])
def test_a_missing_key_stops_the_start(tmp_path: Path, missing: str) -> None:
    load(tmp_path)
    flag = tmp_path / "base" / "data" / ".data_init_flag"
    lines = [line for line in flag.read_text().splitlines() if not line.startswith(missing)]
    flag.write_text("\n".join(lines))
    with pytest.raises(ConfigError, match=missing):
        load(tmp_path)


def test_a_malformed_number_stops_the_start(tmp_path: Path) -> None:
    load(tmp_path)
    flag = tmp_path / "base" / "data" / ".data_init_flag"
    flag.write_text(flag.read_text().replace(str(NOW), "soon"))
    with pytest.raises(ConfigError, match="restore it"):
        load(tmp_path)


def test_the_mark_has_the_documented_layout() -> None:
    mark = make_mark("127.0.0.71", 43000, 0, NOW)
    assert len(mark) == 75
    raw = base64.urlsafe_b64decode(mark + "=")
    assert raw[:10] == b"127.0.0.71"
    assert raw[46:].hex() == "f8a70000000041ec026b"
    assert mark.startswith("MTI3LjAuMC43MQAA")
    assert mark.endswith("PinAAAAAEHsAms")


def test_new_store_paths_get_a_mark_in_both_places(tmp_path: Path, paths: list[str]) -> None:
    identity = load(tmp_path)
    identity.check_marks(paths, "10.0.0.1", 23000, NOW)
    marks = [mark_file(path).read_text().strip().partition("=")[2] for path in paths]
    assert len(set(marks)) == 2
    again = load(tmp_path)
    assert again.marks == dict(enumerate(marks))
    again.check_marks(paths, "10.0.0.9", 1, NOW + 5)
    assert load(tmp_path).marks == dict(enumerate(marks)), "only equality matters later"


def test_swapped_store_paths_are_refused(tmp_path: Path, paths: list[str]) -> None:
    identity = load(tmp_path)
    identity.check_marks(paths, "10.0.0.1", 23000, NOW)
    with pytest.raises(ConfigError, match="store path 0 carries the mark of another"):
        identity.check_marks(paths[::-1], "10.0.0.1", 23000, NOW)


def test_the_disk_of_another_storage_is_refused(tmp_path: Path, paths: list[str]) -> None:
    load(tmp_path).check_marks(paths, "10.0.0.1", 23000, NOW)
    other = Identity.load(tmp_path / "other", NOW)
    with pytest.raises(ConfigError, match="carries the mark of another"):
        other.check_marks(paths, "10.0.0.2", 23000, NOW)
    assert not other.marks


def test_a_disk_that_is_not_mounted_is_refused(tmp_path: Path, paths: list[str]) -> None:
    identity = load(tmp_path)
    identity.check_marks(paths, "10.0.0.1", 23000, NOW)
    identity.decide_source(None)
    mark_file(paths[1]).unlink()
    with pytest.raises(ConfigError, match=r"is the disk mounted.*store_path_mark1"):
        identity.check_marks(paths, "10.0.0.1", 23000, NOW)
    del identity.marks[1]  # what the text advises
    identity.check_marks(paths, "10.0.0.1", 23000, NOW)
    assert mark_file(paths[1]).exists()


def test_a_lost_mark_on_a_full_disk_is_written_again(
    tmp_path: Path, paths: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    identity = load(tmp_path)
    identity.check_marks(paths, "10.0.0.1", 23000, NOW)
    identity.decide_source(None)
    for path in paths:
        fill(path)
    mark_file(paths[0]).unlink()
    identity.check_marks(paths, "10.0.0.1", 23000, NOW + 1)
    assert "written again" in caplog.text
    assert identity.marks[0] in mark_file(paths[0]).read_text()


def test_a_crash_between_the_two_writes_of_a_first_start(tmp_path: Path, paths: list[str]) -> None:
    """Ours is written first, so the store path lacks its mark and gets one."""
    identity = load(tmp_path)
    identity.marks[0] = make_mark("10.0.0.1", 23000, 0, NOW)
    identity.save()
    load(tmp_path).check_marks(paths, "10.0.0.1", 23000, NOW)
    assert mark_file(paths[0]).exists()


@given(st.binary(max_size=300))
def test_any_file_is_an_identity_or_a_config_error(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as directory:
        flag = Path(directory) / "base" / "data" / ".data_init_flag"
        flag.parent.mkdir(parents=True)
        flag.write_bytes(b"storage_join_time=5\nsync_old_done=1\nsync_src_server=\n" + content)
        try:
            Identity.load(Path(directory) / "base", NOW).save()
        except ConfigError:
            return
        assert Identity.load(Path(directory) / "base", NOW).join_time is not None


def test_store_paths_that_lost_their_files(tmp_path: Path) -> None:
    paths = [str(tmp_path / f"path{index}") for index in range(3)]
    identity = Identity.load(tmp_path, NOW)
    for path in paths[:2]:
        (tmp_path / path / "data" / "00").mkdir(parents=True)
    identity.check_marks(paths[:2], "127.0.0.3", 23000, NOW)
    (tmp_path / "path1" / "data" / "00").rmdir()
    assert identity.lost_paths(paths, marked_only=True) == []  # it was no member yet
    identity.decide_source(None)
    assert identity.lost_paths(paths, marked_only=True) == [1]
    assert identity.lost_paths(paths, marked_only=False) == [1, 2]


def test_disk_that_is_not_mounted_is_no_new_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "path0"
    (path / "data" / "00").mkdir(parents=True)
    identity = Identity.load(tmp_path, NOW)
    identity.check_marks([str(path)], "127.0.0.3", 23000, NOW)
    identity.decide_source(None)
    monkeypatch.setattr("fdfs_storage.cluster.identity._has_own_disk", lambda _path: True)
    identity.note_disks([str(path)])
    (path / "data" / "00").rmdir()
    again = Identity.load(tmp_path, NOW)
    assert again.lost_paths([str(path)], marked_only=True) == [0]  # a new disk was mounted
    monkeypatch.setattr("fdfs_storage.cluster.identity._has_own_disk", lambda _path: False)
    with pytest.raises(ConfigError, match="not mounted"):
        again.lost_paths([str(path)], marked_only=True)
