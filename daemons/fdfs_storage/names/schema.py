"""The tables that hold a volume's tree, and how their database is opened.

One writer, any number of readers: the writing connection holds a batch of changes in one open
transaction, the others see committed state only (SQLite's WAL mode). ``synchronous=NORMAL``:
committing does not wait for the disk, because the log is what makes a change durable; after
the loss of power the state may lie behind the log and is brought up by replaying it.

Checkpoints (copying the WAL into the database, with two fsyncs) never run inside a commit, but
in the background (`fdfs_storage.names.housekeeping`).
"""

from __future__ import annotations

import sqlite3
from typing import Final

from fdfsfuse.proto.names import ROOT_INO

SCHEMA_VERSION: Final = 1
ROOT_MODE: Final = 0o040755

TABLES: Final = """
-- Exactly one row. `applied`: index of the last record in this state, `view` that record's view
-- (both 0 before the first). `next_ino`, `next_garbage`: ids never used before.
CREATE TABLE meta (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    version INTEGER NOT NULL,
    volume_id TEXT NOT NULL,
    view INTEGER NOT NULL,
    applied INTEGER NOT NULL,
    next_ino INTEGER NOT NULL,
    next_garbage INTEGER NOT NULL
);

-- One row per inode; ino 1 is the root directory and never goes away.
-- nlink: names of a file; of a directory 2 + its subdirectories. 0: an orphan, which has a row
-- in `garbage` with file_id NULL and lives until that is collected.
-- file_id: the object, NULL when there is none; then a file's size is 0. in_place: 0 or 1,
-- only with a file_id. version counts changes of content. target: of a symlink, else empty.
CREATE TABLE inode (
    ino INTEGER PRIMARY KEY,
    mode INTEGER NOT NULL,
    nlink INTEGER NOT NULL,
    uid INTEGER NOT NULL,
    gid INTEGER NOT NULL,
    rdev INTEGER NOT NULL,
    size INTEGER NOT NULL,
    atime_ns INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL,
    ctime_ns INTEGER NOT NULL,
    version INTEGER NOT NULL,
    file_id TEXT,
    target BLOB NOT NULL,
    in_place INTEGER NOT NULL
);
CREATE UNIQUE INDEX inode_object ON inode (file_id) WHERE file_id IS NOT NULL;
CREATE INDEX inode_in_place ON inode (ino) WHERE in_place = 1;

-- One row per name. cookie: index of the record that made the entry, so it rises in the order of
-- making and is never reused in a directory. A rename over a name keeps the cookie of that name.
CREATE TABLE dirent (
    parent INTEGER NOT NULL,
    cookie INTEGER NOT NULL,
    name BLOB NOT NULL,
    ino INTEGER NOT NULL,
    PRIMARY KEY (parent, cookie)
) WITHOUT ROWID;
CREATE UNIQUE INDEX dirent_name ON dirent (parent, name);
CREATE INDEX dirent_ino ON dirent (ino);

-- xattrs that the metadata of the inode's object does not hold; of an inode without object, all.
CREATE TABLE xattr (
    ino INTEGER NOT NULL,
    name BLOB NOT NULL,
    value BLOB NOT NULL,
    PRIMARY KEY (ino, name)
) WITHOUT ROWID;

-- session: index of the record that opened it. ended: 0 while it lives, then 1; the row goes
-- when its results do.
CREATE TABLE session (
    session INTEGER PRIMARY KEY,
    token BLOB NOT NULL,
    client TEXT NOT NULL,
    ended INTEGER NOT NULL
);

-- What a request that changed something was answered: the encoded answer struct.
CREATE TABLE result (
    session INTEGER NOT NULL,
    id INTEGER NOT NULL,
    answer BLOB NOT NULL,
    PRIMARY KEY (session, id)
) WITHOUT ROWID;

-- Objects made by us that have no inode yet. session 0: made for an operation of the storage
-- itself, which does not survive a restart.
CREATE TABLE pending (
    file_id TEXT PRIMARY KEY,
    session INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX pending_session ON pending (session);

-- What may be deleted when its time has come. ino: the inode that had the object, 0 for none.
-- file_id NULL: the orphan inode itself. collected: 1 when the deletion is decided and the inode
-- row gone; the file may or may not be deleted already.
CREATE TABLE garbage (
    id INTEGER PRIMARY KEY,
    ino INTEGER NOT NULL,
    file_id TEXT,
    collected INTEGER NOT NULL
);
CREATE UNIQUE INDEX garbage_object ON garbage (file_id) WHERE file_id IS NOT NULL;
"""

INODE_BLOCKS: Final = """
-- Inode numbers that were reserved for a session which lives. Its mount may have made files with
-- them that the storage has not been told of.
CREATE TABLE IF NOT EXISTS inode_block (
    first INTEGER PRIMARY KEY,
    count INTEGER NOT NULL,
    session INTEGER NOT NULL
)
"""
"""Trees that were made before there were grants do not have it yet."""

ATTR_COLUMNS: Final = (
    "inode.ino, mode, nlink, uid, gid, rdev, size, atime_ns, mtime_ns, ctime_ns, version,"
    " ifnull(file_id, ''), target, in_place"
)
"""The columns of `fdfsfuse.proto.names.Attr`, in its order."""


def connect(path: str) -> sqlite3.Connection:
    """Open the database for one more user of it. Transactions are begun by hand."""
    db = sqlite3.connect(
        path, isolation_level=None, check_same_thread=False, cached_statements=256, timeout=10
    )
    # trusted_schema and friends stay at their defaults: the file is as private as the objects.
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA synchronous=NORMAL")
    db.execute("PRAGMA wal_autocheckpoint=0")
    db.execute("PRAGMA cache_size=-32768")
    return db


def create(
    db: sqlite3.Connection, volume_id: str, now_ns: int, owner: tuple[int, int] = (0, 0)
) -> None:
    """Make the tables of an empty tree, whose root belongs to *owner* (uid, gid)."""
    db.executescript("BEGIN;" + TABLES + "COMMIT;")
    db.execute("BEGIN")
    db.execute(
        "INSERT INTO meta VALUES (1, ?, ?, 0, 0, ?, 1)", (SCHEMA_VERSION, volume_id, ROOT_INO + 1)
    )
    db.execute(
        "INSERT INTO inode VALUES (?, ?, 2, ?, ?, 0, 0, ?, ?, ?, 0, NULL, x'', 0)",
        (ROOT_INO, ROOT_MODE, *owner, now_ns, now_ns, now_ns),
    )
    db.execute("COMMIT")
