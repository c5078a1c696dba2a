"""Common tools on the mount do what they do on a local directory."""

from __future__ import annotations

import mmap
import os
import random
import shutil
import sqlite3
import subprocess
import threading
from pathlib import Path

import pytest

from tests.common.mount import Mount
from tests.common.trees import assert_same_tree, make_tree, need, run, snapshot
from tests.common.waiting import wait_until


@pytest.fixture
def source(local: Path) -> Path:
    """A local tree with all kinds of entries."""
    path = local / "source"
    make_tree(path)
    return path


# --- copying --------------------------------------------------------------------------------------


def test_cp_archive_there_and_back(source: Path, volume: Path, local: Path) -> None:
    run(["cp", "-a", source, volume / "copy"])
    assert_same_tree(source, volume / "copy")
    run(["cp", "-a", volume / "copy", volume / "second"])
    assert_same_tree(source, volume / "second")
    run(["cp", "-a", volume / "second", local / "back"])
    assert_same_tree(source, local / "back")


def test_what_was_copied_survives_a_remount(source: Path, volume: Path, mounted: Mount) -> None:
    run(["cp", "-a", source, volume / "copy"])
    mounted.remount()
    assert_same_tree(source, volume / "copy")


def test_rsync_copies_nothing_the_second_time(source: Path, volume: Path, local: Path) -> None:
    command = ["rsync", "-aXH", "--itemize-changes", f"{source}/", f"{volume}/copy/"]
    assert run(command).stdout
    assert_same_tree(source, volume / "copy")
    assert run(command).stdout == b""
    assert run([*command[:-2], f"{volume}/copy/", f"{local}/back/"]).stdout
    assert_same_tree(source, local / "back")
    # By content, not by size and time.
    assert run([*command[:-2], "--checksum", f"{source}/", f"{volume}/copy/"]).stdout == b""


def test_rsync_updates_changed_files(source: Path, volume: Path) -> None:
    command = ["rsync", "-aXH", "--delete", "--itemize-changes", f"{source}/", f"{volume}/copy/"]
    run(command)
    big = next(p for p in sorted(source.rglob("*")) if p.is_file() and p.stat().st_size > 2_000_000)
    with big.open("r+b") as file:
        file.seek(1_000_000)
        file.write(b"changed")
    (source / "hard link").unlink()
    (source / "new").write_bytes(b"new")
    os.setxattr(source / "new", "user.height", b"768")
    run([*command[:2], "--inplace", "--no-whole-file", *command[2:]])
    assert_same_tree(source, volume / "copy")
    assert run(command).stdout == b""


def test_tar(source: Path, volume: Path, local: Path) -> None:
    options = ["--xattrs", "--format=posix"]
    run(["tar", *options, "-cf", volume / "archive.tar", "-C", source, "."])
    (volume / "out").mkdir()
    run(["tar", *options, "-xpf", volume / "archive.tar", "-C", volume / "out"])
    assert_same_tree(source, volume / "out")
    run(["tar", *options, "-cf", local / "again.tar", "-C", volume / "out", "."])
    (local / "out").mkdir()
    run(["tar", *options, "-xpf", local / "again.tar", "-C", local / "out"])
    assert_same_tree(source, local / "out")
    assert run(["tar", "-df", local / "again.tar", "-C", volume / "out"]).stdout == b""


def test_copytree_and_diff(source: Path, volume: Path) -> None:
    for fifo in ("fifo",):
        (source / fifo).unlink()
    shutil.copytree(source, volume / "copy", symlinks=True)
    assert run(["diff", "-r", "--no-dereference", source, volume / "copy"]).stdout == b""
    (volume / "copy" / "new\nline").write_bytes(b"other")
    done = run(["diff", "-rq", "--no-dereference", source, volume / "copy"], check=False)
    assert done.returncode == 1
    assert b"differ" in done.stdout


# --- moving and removing --------------------------------------------------------------------------


def test_mv_within_into_and_out_of_the_mount(source: Path, volume: Path, local: Path) -> None:
    run(["cp", "-a", source, local / "reference"])
    run(["mv", source, volume / "moved in"])
    assert not source.exists()
    assert_same_tree(local / "reference", volume / "moved in")
    before = {n.name: n.stat().st_ino for n in (volume / "moved in").iterdir() if n.is_dir()}
    (volume / "deeper").mkdir()
    run(["mv", volume / "moved in", volume / "deeper" / "renamed"])
    after = {n.name: n.stat().st_ino for n in (volume / "deeper/renamed").iterdir() if n.is_dir()}
    assert before == after, "a rename inside a volume copies nothing"
    assert_same_tree(local / "reference", volume / "deeper" / "renamed")
    run(["mv", volume / "deeper" / "renamed", local / "moved out"])
    assert_same_tree(local / "reference", local / "moved out")
    assert list(volume.rglob("*")) == [volume / "deeper"]


def test_mv_between_volumes_copies(source: Path, volume: Path, mounted: Mount) -> None:
    run(["cp", "-a", source, volume / "tree"])
    other = mounted.path / "group2" / volume.name
    with pytest.raises(OSError, match="cross-device"):
        os.rename(volume / "tree", other)
    run(["mv", volume / "tree", other])
    assert not (volume / "tree").exists()
    assert_same_tree(source, other)
    run(["rm", "-rf", other])


def test_rm_rf(source: Path, volume: Path) -> None:
    run(["cp", "-a", source, volume / "tree"])
    run(["rm", "-rf", volume / "tree"])
    assert list(volume.iterdir()) == []
    volume.rmdir()
    assert not volume.exists()
    volume.mkdir()


# --- the same script in both places ---------------------------------------------------------------

SCRIPTS = {
    "find": r"""
        find . -printf '%p %y %m %s %l %n\n' -type d -prune -o -printf '' | sort | grep -v ' d '
        find . -type f -size +4k | sort
        find . -name '*.c' -newer symlink | sort
        find . -type l -exec readlink {} + | sort
        find . -type f -links +1 | sort
        find . -type f -perm 600 -print0 | xargs -0 -r ls -l --time-style=full-iso -d --
        find . -empty | sort
    """,
    "listings": r"""
        ls -lRn --time-style=full-iso --block-size=1 . | grep -v '^total' | sed 's/^d\(.*\) .*/d/'
        stat -c '%n %F %a %u %g %h %s %y' symlink 'hard link' fifo dangling setuid
        find . -type f -exec wc -c {} + | sort -n | grep -v total
        md5sum -- $(find . -type f -name 'file*' | grep -v ' ' | sort)
    """,
    "editing in place": r"""
        seq 1 20000 > numbers
        sed -i 's/7/seven/g' numbers; md5sum numbers
        sed -i.orig -e '/seven/d' numbers; md5sum numbers numbers.orig
        sort -r -o numbers numbers; md5sum numbers
        perl -pi -e 's/1/one/g' numbers 2>/dev/null || sed -i 's/1/one/g' numbers; md5sum numbers
        echo appended >> numbers; tail -2 numbers
        : > numbers; wc -c numbers
        rm numbers.orig
    """,
    "dd": r"""
        seq 1 400000 > input
        dd if=input of=odd bs=777 status=none; cmp input odd
        dd if=input of=odd bs=1237 seek=501 count=99 conv=notrunc status=none; md5sum odd
        dd if=input of=odd bs=65537 skip=3 seek=9 conv=notrunc status=none; md5sum odd
        dd if=input of=odd bs=1 seek=1048570 count=13 conv=notrunc status=none; md5sum odd
        dd if=input of=odd bs=4k seek=3 count=1 status=none; md5sum odd; wc -c odd
        dd if=/dev/zero of=holes bs=1 count=1 seek=5000000 status=none; md5sum holes
        dd if=input of=odd oflag=append conv=notrunc bs=333 count=10 status=none; md5sum odd
        dd if=input of=synced bs=100k conv=fsync oflag=sync count=5 status=none; md5sum synced
        dd if=odd bs=511 skip=7 count=2 status=none | md5sum
        rm input odd holes synced
    """,
    "truncate and split": r"""
        seq 1 300000 > a; truncate -s 100 a; cat a; truncate -s 1500000 a; md5sum a
        truncate -s +7 a; wc -c a; truncate -s 1048576 a; md5sum a; truncate -s 0 a; wc -c a
        seq 1 200000 > b; split -b 300000 b part.; cat part.* | cmp - b; ls part.*
        cp b c; cat c c c > d; wc -c d; tail -c 5 d; head -c 1000003 d | md5sum
        cp --sparse=always d e; cmp d e; install -m 0711 d f; stat -c '%a %s' f
        rm a b c d e f part.*
    """,
    "links": r"""
        echo one > x; ln x y; ln -s x z; echo two >> y; cat x y z; stat -c '%h' x
        ln x y; echo $?; ln -sf y z; readlink z; mv -f y x; ls x y; cat x
        ln missing m; echo $?; ln -s loop loop; cat loop; echo $?; mkdir d; ln d e; echo $?
        rm x y z loop; rmdir d
    """,
    "errors": r"""
        mkdir a a/b; echo x > f
        rmdir a; echo $?; mkdir a; echo $?; cat a; echo $?; rmdir f; echo $?; rm a; echo $?
        mv a a/b/c; echo $?; mv a f; echo $?; mv f a/b; ls a/b; cat f/x; echo $?; touch f/x; echo $?
        touch nowhere/x; echo $?; rm missing; echo $?; cat a/b/f/; echo $?
        touch $(printf '%0256d' 0); echo $?
        rm -r a
    """,
    "modes and times": r"""
        touch -d '2001-02-03 04:05:06.789012345 UTC' t; stat -c '%y %s' t
        touch -m -d '1999-01-01 00:00:00.5 UTC' t; stat -c '%x %y' t; touch -r t u; stat -c '%y' u
        chmod 0 t; stat -c '%a' t; chmod u=rwx,g+s,o+t t; stat -c '%a' t
        mkdir -m 2775 d; stat -c '%a' d; touch d/in; mkdir d/sub; stat -c '%a %g' d/in d/sub
        cp -p t v; stat -c '%a %y' v; touch -d '1960-01-01 UTC' old; stat -c '%y' old
        touch -d '2038-01-20 UTC' late; stat -c '%y' late
        rm -rf t u d v old late
    """,
    "redirections": r"""
        (echo a; echo b) > o; exec 3<> o; echo X >&3; cat o; exec 3>&-
        for i in 1 2 3 4 5 6 7 8 9; do echo $i; done >> o; cat o
        { sleep 0; echo late; } >> o & wait; cat o; tee -a o < setuid > p; wc -l o p
        cat <<E > o
here
E
        cat o p; set -C; echo x > o; echo $?; rm -f o p
    """,
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_script_prints_the_same(name: str, source: Path, volume: Path, local: Path) -> None:
    """Each script runs in a local copy of the tree and in one on the mount."""
    outputs = []
    for base in (local / "tree", volume / "tree"):
        run(["cp", "-a", source, base])
        done = run(["sh", "-c", f"umask 022\nexec 2>&1\n{SCRIPTS[name]}\ntrue"], cwd=base)
        outputs.append(done.stdout.decode(errors="replace").splitlines())
    assert outputs[0] == outputs[1]
    assert len(outputs[0]) > 5, "the script printed what it was written for"
    assert_same_tree(local / "tree", volume / "tree")


def test_getfattr_and_setfattr(volume: Path, local: Path) -> None:
    outputs = []
    script = r"""
        exec 2>&1
        echo x > f; mkdir d; ln -s f l
        setfattr -n user.width -v 1024 f; setfattr -n user.height -v 768 f
        setfattr -n user.binary -v 0x000102ff f; setfattr -n user.empty f
        setfattr -n user.on.directory -v yes d
        getfattr -d f d; getfattr -n user.width --only-values f; echo
        getfattr -n user.missing f; echo $?
        setfattr -x user.height f; getfattr -d f; setfattr -x user.height f; echo $?
        setfattr -n user.width -v 2048 f; getfattr -n user.width f
        setfattr -n user.long -v $(printf '%01000d' 5) f; getfattr -n user.long f | md5sum
        setfattr -h -n user.x -v y l; echo $?
        setfattr -n nonsense -v y f; echo $?
        getfattr -d -m - f | sort; getfattr -R -d . | sort; getfattr -n user.width l
    """
    for base in (local / "x", volume / "x"):
        base.mkdir()
        need("getfattr")
        outputs.append(run(["sh", "-c", script], cwd=base).stdout.decode().splitlines())
    assert outputs[0] == outputs[1]
    assert len(outputs[0]) > 30


# --- programs that keep data ----------------------------------------------------------------------


def make_repository(path: Path) -> None:
    """A git repository with a few commits, a branch, a symlink and an executable."""
    draw = random.Random(7)
    run(["git", "init", "-q", "-b", "main", path])
    for commit in range(5):
        for number in range(12):
            file = path / f"src/part{number % 3}/file{number}.py"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("".join(f"line {draw.random()}\n" for _ in range(commit * 20 + 5)))
        (path / "run").write_text("#!/bin/sh\n")
        (path / "run").chmod(0o755)
        if commit == 0:
            (path / "link").symlink_to("src/part0/file0.py")
        run(["git", "add", "-A"], path)
        run(["git", "commit", "-q", "-m", f"commit {commit}"], path)
    run(["git", "branch", "older", "HEAD~3"], path)


def test_git(local: Path, volume: Path) -> None:
    origin, clone = local / "origin", volume / "clone"
    make_repository(origin)
    run(["git", "clone", "-q", f"file://{origin}", clone])
    assert run(["git", "status", "--porcelain"], clone).stdout == b""
    assert run(["git", "diff", "--stat"], clone).stdout == b""
    (clone / "src/part0/file0.py").write_text("changed\n")
    (clone / "new file").write_text("new\n")
    changed = run(["git", "status", "--porcelain"], clone).stdout
    assert changed == b' M src/part0/file0.py\n?? "new file"\n'
    run(["git", "add", "-A"], clone)
    run(["git", "commit", "-q", "-m", "on the mount"], clone)
    run(["git", "checkout", "-q", "-b", "side", "HEAD~2"], clone)
    run(["git", "checkout", "-q", "main"], clone)
    run(["git", "mv", "src/part1", "moved"], clone)
    run(["git", "commit", "-q", "-m", "move"], clone)
    run(["git", "stash", "list"], clone)
    run(["git", "gc", "-q"], clone)
    run(["git", "fsck", "--strict"], clone)
    assert run(["git", "status", "--porcelain"], clone).stdout == b""
    run(["git", "push", "-q", "origin", "main:from-mount"], clone)
    head = run(["git", "rev-parse", "main"], clone).stdout
    assert run(["git", "rev-parse", "from-mount"], origin).stdout == head
    # A clone of the clone, with its hard links inside the volume.
    run(["git", "clone", "-q", clone, volume / "second"])
    assert run(["git", "rev-parse", "HEAD"], volume / "second").stdout == head


@pytest.mark.parametrize("journal", ["delete", "truncate", "persist"])
def test_sqlite_writes_a_database(volume: Path, mounted: Mount, journal: str) -> None:
    path = volume / "data.db"
    draw = random.Random(3)
    rows = {key: draw.randbytes(draw.randrange(2000)) for key in range(400)}
    connection = sqlite3.connect(path, isolation_level=None)
    assert connection.execute(f"PRAGMA journal_mode={journal}").fetchone() == (journal,)
    connection.execute("CREATE TABLE item (key INTEGER PRIMARY KEY, value BLOB)")
    connection.execute("CREATE INDEX by_size ON item (length(value))")
    for start in range(0, 400, 40):
        connection.execute("BEGIN")
        connection.executemany(
            "INSERT INTO item VALUES (?, ?)", [(k, rows[k]) for k in range(start, start + 40)]
        )
        connection.execute("COMMIT")
    connection.execute("BEGIN")
    connection.execute("DELETE FROM item")
    connection.execute("ROLLBACK")
    connection.execute("DELETE FROM item WHERE key % 3 = 0")
    connection.execute("VACUUM")
    connection.close()
    expected = [(key, value) for key, value in rows.items() if key % 3]
    mounted.remount()
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert connection.execute("SELECT key, value FROM item ORDER BY key").fetchall() == expected
    connection.close()
    sqlite = shutil.which("sqlite3")
    if sqlite is not None:
        out = run([sqlite, path, "INSERT INTO item VALUES (1000, 'x'); SELECT count(*) FROM item"])
        assert out.stdout == b"%d\n" % (len(expected) + 1)


def test_two_sqlite_writers_take_turns(volume: Path) -> None:
    """Locks hold between processes on one mount."""
    path = volume / "shared.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE counter (value INTEGER)")
        connection.execute("INSERT INTO counter VALUES (0)")
    connection.close()
    script = (
        "import sqlite3,sys\n"
        "c=sqlite3.connect(sys.argv[1],isolation_level=None,timeout=120)\n"
        "for _ in range(25): c.execute('UPDATE counter SET value=value+1')\n"
    )
    writers = [
        subprocess.Popen([shutil.which("python3") or "python3", "-c", script, path]) for _ in "ab"
    ]
    assert [writer.wait(100) for writer in writers] == [0, 0]
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT value FROM counter").fetchone() == (50,)
    connection.close()


# --- how editors save, and how programs read ------------------------------------------------


def test_save_by_rename_is_atomic_for_readers(volume: Path) -> None:
    path, stop, seen = volume / "document", threading.Event(), set()
    size = 50_000
    path.write_bytes(b"\0" * size)
    failures: list[str] = []

    def read() -> None:
        while not stop.is_set():
            try:
                data = path.read_bytes()
            except OSError as exc:
                failures.append(f"{exc}")
                return
            if len(data) != size or data.count(data[:1]) != size:
                failures.append(f"{len(data)} bytes, starts {data[:4]!r}, ends {data[-4:]!r}")
                return
            seen.add(data[0])

    reader = threading.Thread(target=read)
    reader.start()
    try:
        wait_until(lambda: seen or failures, "the first version to be read")
        for number in range(1, 101):
            temporary = volume / f".document.{number}.swp"
            with temporary.open("wb") as file:
                file.write(bytes([number]) * size)
                file.flush()
                os.fsync(file.fileno())
            os.rename(temporary, path)
        wait_until(lambda: 100 in seen or failures, "the last version to be read")
    finally:
        stop.set()
        reader.join()
    assert not failures
    assert [entry.name for entry in volume.iterdir()] == ["document"]


def test_save_with_a_backup(volume: Path) -> None:
    """The way of vi: the old file becomes the backup, a new one takes its mode and xattrs."""
    path, backup = volume / "notes", volume / "notes~"
    path.write_text("old\n")
    path.chmod(0o640)
    os.setxattr(path, "user.lang", b"en")
    for number in range(5):
        os.rename(path, backup)
        with path.open("x") as file:
            file.write(f"version {number}\n")
            os.fchmod(file.fileno(), 0o640)
            os.setxattr(file.fileno(), "user.lang", os.getxattr(backup, "user.lang"))
            file.flush()
            os.fsync(file.fileno())
        backup.unlink()
        assert path.read_text() == f"version {number}\n"
        assert path.stat().st_mode & 0o777 == 0o640
        assert os.getxattr(path, "user.lang") == b"en"


def test_mmap_reads(volume: Path, mounted: Mount) -> None:
    data = random.Random(5).randbytes(3_000_001)
    path = volume / "mapped"
    path.write_bytes(data)
    mounted.remount()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        assert mapped[2_999_990:] == data[2_999_990:]
        assert mapped[:100] == data[:100]
        assert mapped.find(data[1_500_000:1_500_040]) == 1_500_000
        assert bytes(mapped) == data


def test_private_mmap_and_execution(volume: Path) -> None:
    """Programs are mapped when they run, and cannot be written to meanwhile."""
    binary = volume / "copy-of-cat"
    shutil.copy(need("cat"), binary)
    assert run([str(binary), "/dev/null"]).stdout == b""
    (volume / "text").write_text("through the mount\n")
    assert run([str(binary), volume / "text"]).stdout == b"through the mount\n"


def test_unlinked_files_stay_readable(volume: Path) -> None:
    data = random.Random(6).randbytes(2_500_000)
    (volume / "temporary").write_bytes(data)
    with (volume / "temporary").open("r+b", buffering=0) as file:
        (volume / "temporary").unlink()
        assert os.fstat(file.fileno()).st_nlink == 0
        assert file.read(len(data)) == data
        file.seek(1_000_000)
        file.write(b"still writable")
        file.seek(1_000_000)
        assert file.read(14) == b"still writable"
    assert list(volume.iterdir()) == []


def test_many_writers_append_whole_lines(volume: Path) -> None:
    """O_APPEND on one mount: no line is lost or torn."""
    script = (
        "import os,sys\n"
        "fd=os.open(sys.argv[1],os.O_WRONLY|os.O_APPEND|os.O_CREAT,0o644)\n"
        "for i in range(100): os.write(fd,b'%s %d\\n'%(sys.argv[2].encode(),i))\n"
    )
    python = shutil.which("python3") or "python3"
    log = volume / "log"
    writers = [subprocess.Popen([python, "-c", script, log, name]) for name in "abcd"]
    assert [writer.wait(100) for writer in writers] == [0] * 4
    lines = log.read_text().splitlines()
    assert sorted(lines) == sorted(f"{name} {i}" for name in "abcd" for i in range(100))


def test_df_and_du_show_the_store(volume: Path, mounted: Mount) -> None:
    """A mount has one figure: the sum over its volumes (which share a disk here)."""
    paths = [storage.store_paths[0] for storage in mounted.cluster.storages]

    def is_shown() -> bool:
        stores = [os.statvfs(path) for path in paths]
        shown = os.statvfs(volume)
        total = sum(store.f_blocks * store.f_frsize for store in stores)
        free = sum(store.f_bfree * store.f_frsize for store in stores)
        assert abs(shown.f_blocks * shown.f_frsize - total) < 64 << 20
        return 0 < shown.f_bavail * shown.f_frsize <= free + (64 << 20)

    # It may be some seconds old, and others use the disk.
    wait_until(is_shown, "the free space to be that of the stores")
    assert run(["df", "-k", volume]).stdout.count(b"\n") == 2
    (volume / "file").write_bytes(b"x" * 300_000)
    assert int(run(["du", "-sk", volume / "file"]).stdout.split()[0]) >= 293


def test_snapshot_sees_differences(volume: Path, local: Path) -> None:
    """The comparison used above does not pass by seeing nothing."""
    (volume / "a").write_text("1")
    (local / "a").write_text("2")
    left, right = snapshot(volume), snapshot(local)
    assert left.keys() == right.keys() == {"a"}
    assert left["a"] != right["a"]
