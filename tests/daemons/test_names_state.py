"""The state machine against a plain model of a POSIX tree, with its invariants and its answers."""

from __future__ import annotations

import errno
import random
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    rule,
    run_state_machine_as_test,
)

from fdfs_storage.names import schema
from fdfs_storage.names.reads import Reads
from fdfs_storage.names.state import State
from fdfsfuse.core import acl
from fdfsfuse.core.names_log import Position
from fdfsfuse.errors import StatusError
from fdfsfuse.proto import names, names_record
from fdfsfuse.proto.names import Attr, Renamed
from fdfsfuse.proto.names_record import Change, Op

ROOT = names.ROOT_INO
NOW = 1_700_000_000_000_000_000
FILE, DIRECTORY, LINK = stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755, stat.S_IFLNK | 0o777
NAMES = st.sampled_from([b"a", b"b", b"c", b"d"])
MODES = st.sampled_from([FILE, DIRECTORY, DIRECTORY, LINK])
EXCHANGE, NOREPLACE = 2, 1


def new_state() -> State:
    db = schema.connect(":memory:")
    schema.create(db, "0" * 32, 0)
    return State(db)


@pytest.fixture
def state() -> Iterator[State]:
    state = new_state()
    yield state
    state.db.close()


def apply(
    state: State,
    op: Op,
    *,
    session: int = 0,
    id: int = 0,
    done_below: int = 0,
    lazily: bool = False,
) -> bytes:
    """Apply *op* in a batch of its own, at the next position."""
    state.begin()
    try:
        change = Change(session, id, done_below, NOW, op)
        answer, _ = state.apply(Position(1, state.position.index + 1), change)
    except StatusError:
        state.end_unchanged()
        raise
    state.commit(lazily=lazily)
    return answer


@dataclass
class Node:
    mode: int
    entries: dict[bytes, int] = field(default_factory=dict)
    object: str = ""

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)


class Refused(Exception):
    """The model refuses an operation."""


class Model:
    """A tree as POSIX describes it. Inode numbers are those that the state gave."""

    def __init__(self) -> None:
        self.nodes = {ROOT: Node(DIRECTORY)}

    def links(self, ino: int) -> int:
        node = self.nodes[ino]
        count = sum(entry == ino for n in self.nodes.values() for entry in n.entries.values())
        if not node.is_directory:
            return count
        if not count and ino != ROOT:
            return 0
        return 2 + sum(self.nodes[child].is_directory for child in node.entries.values())

    def directory(self, ino: int) -> dict[bytes, int]:
        if ino not in self.nodes:
            raise Refused(errno.ESTALE)
        if not self.nodes[ino].is_directory:
            raise Refused(errno.ENOTDIR)
        if not self.links(ino):
            raise Refused(errno.ENOENT)
        return self.nodes[ino].entries

    def entry(self, parent: int, name: bytes) -> int:
        entries = self.directory(parent)
        if name not in entries:
            raise Refused(errno.ENOENT)
        return entries[name]

    def check_create(self, parent: int, name: bytes) -> None:
        if name in self.directory(parent):
            raise Refused(errno.EEXIST)

    def check_removable(self, ino: int, directory: bool) -> None:
        node = self.nodes[ino]
        if node.is_directory and not directory:
            raise Refused(errno.EISDIR)
        if directory and not node.is_directory:
            raise Refused(errno.ENOTDIR)
        if node.entries:
            raise Refused(errno.ENOTEMPTY)

    def is_below(self, directory: int, ino: int) -> bool:
        if directory == ino:
            return True
        return any(self.is_below(directory, child) for child in self.nodes[ino].entries.values())

    def remove(self, parent: int, name: bytes, directory: bool) -> None:
        self.check_removable(self.entry(parent, name), directory)
        del self.nodes[parent].entries[name]

    def link(self, ino: int, parent: int, name: bytes) -> None:
        if ino not in self.nodes:
            raise Refused(errno.ESTALE)
        if self.nodes[ino].is_directory:
            raise Refused(errno.EPERM)
        entries = self.directory(parent)
        if not self.links(ino):
            raise Refused(errno.ENOENT)
        if name in entries:
            raise Refused(errno.EEXIST)
        entries[name] = ino

    def rename(
        self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int
    ) -> int | None:
        """The inode that lost its name or was exchanged."""
        source = self.entry(parent, name)
        entries = self.directory(new_parent)
        target = entries.get(new_name)
        if flags == NOREPLACE and target is not None:
            raise Refused(errno.EEXIST)
        if flags == EXCHANGE and target is None:
            raise Refused(errno.ENOENT)
        if target == source:
            return None
        if self.nodes[source].is_directory and self.is_below(new_parent, source):
            raise Refused(errno.EINVAL)
        if flags == EXCHANGE and target is not None:
            if self.nodes[target].is_directory and self.is_below(parent, target):
                raise Refused(errno.EINVAL)
            self.nodes[parent].entries[name] = target
            entries[new_name] = source
            return target
        if target is not None:
            self.check_removable(target, self.nodes[source].is_directory)
        del self.nodes[parent].entries[name]
        entries[new_name] = source
        return target


class TreeMachine(RuleBasedStateMachine):
    """Does the same to the state and to the model."""

    def __init__(self) -> None:
        super().__init__()
        self.state = new_state()
        self.model = Model()
        self.number = 0
        self.objects = 0
        self.garbage: set[str] = set()

    def teardown(self) -> None:
        self.state.db.close()

    def _ino(self, pick: int) -> int:
        known = list(self.model.nodes)
        return known[pick % len(known)]

    def _directory(self, pick: int) -> int:
        known = [ino for ino, node in self.model.nodes.items() if node.is_directory]
        return known[pick % len(known)] if pick % 7 else self._ino(pick)

    def _entry(self, pick: int, name: bytes) -> tuple[int, bytes]:
        """Mostly an entry that exists: random ones seldom meet."""
        known = [(ino, entry) for ino, node in self.model.nodes.items() for entry in node.entries]
        if known and pick % 5:
            return known[pick % len(known)]
        return self._directory(pick), name

    def _do(self, op: Op, expected: int) -> bytes | None:
        """Apply *op*; it must be refused with *expected* (0: not at all)."""
        before = list(self.state.db.iterdump()) if expected else []
        if not expected:
            return apply(self.state, op)
        with pytest.raises(StatusError) as caught:
            apply(self.state, op)
        assert caught.value.errno == expected, op
        assert list(self.state.db.iterdump()) == before
        return None

    @rule(pick=st.integers(0, 200), name=NAMES, mode=MODES)
    def create(self, pick: int, name: bytes, mode: int) -> None:
        parent = self._directory(pick)
        target = b"t" if mode == LINK else b""
        expected = 0
        try:
            self.model.check_create(parent, name)
        except Refused as exc:
            expected = exc.args[0]
        answer = self._do(names.Create(parent, name, mode, 1, 1, NOW, 0, target), expected)
        if answer is not None:
            attr = names.decode_answer(names.Create, answer)
            assert isinstance(attr, Attr)
            assert attr.ino not in self.model.nodes
            self.model.nodes[attr.ino] = Node(mode)
            self.model.nodes[parent].entries[name] = attr.ino

    @rule(pick=st.integers(0, 200), name=NAMES, directory=st.booleans())
    def remove(self, pick: int, name: bytes, directory: bool) -> None:
        parent, name = self._entry(pick, name)
        expected = 0
        try:
            self.model.remove(parent, name, directory)
        except Refused as exc:
            expected = exc.args[0]
        self._do(names.Remove(parent, name, directory, NOW), expected)

    @rule(pick=st.integers(0, 200), linked=st.integers(0, 200), name=NAMES)
    def link(self, pick: int, linked: int, name: bytes) -> None:
        ino, parent = self._ino(linked), self._directory(pick)
        expected = 0
        try:
            self.model.link(ino, parent, name)
        except Refused as exc:
            expected = exc.args[0]
        self._do(names.Link(ino, parent, name, NOW), expected)

    @rule(
        pick=st.integers(0, 200),
        name=NAMES,
        new_pick=st.integers(0, 200),
        new_name=NAMES,
        flags=st.sampled_from([0, 0, NOREPLACE, EXCHANGE]),
    )
    def rename(self, pick: int, name: bytes, new_pick: int, new_name: bytes, flags: int) -> None:
        parent, name = self._entry(pick, name)
        new_parent, new_name = self._entry(new_pick, new_name)
        expected, other = 0, None
        try:
            other = self.model.rename(parent, name, new_parent, new_name, flags)
        except Refused as exc:
            expected = exc.args[0]
        answer = self._do(names.Rename(parent, name, new_parent, new_name, flags, NOW), expected)
        if answer is not None:
            renamed = names.decode_answer(names.Rename, answer)
            assert isinstance(renamed, Renamed)
            assert (renamed.replaced.ino if renamed.replaced else None) == other

    @rule(pick=st.integers(0, 200), empty=st.booleans())
    def put_content(self, pick: int, empty: bool) -> None:
        ino = self._ino(pick)
        node = self.model.nodes[ino]
        expected = 0
        if not stat.S_ISREG(node.mode):
            expected = errno.EISDIR if node.is_directory else errno.EINVAL
        self.objects += 1
        file_id = "" if empty else f"M00/00/00/{self.objects:040d}"
        data = None if empty else b"12345"
        op = names_record.PutContent(ino, file_id, 0 if empty else 5, NOW, False, data, b"")
        if self._do(op, expected) is not None:
            if node.object:
                self.garbage.add(node.object)
            node.object = file_id

    @rule(pick=st.integers(0, 200), mode=st.integers(0, 0o7777))
    def chmod(self, pick: int, mode: int) -> None:
        ino = self._ino(pick)
        self._do(names.SetAttr(ino, NOW, mode=mode & ~stat.S_ISGID), 0)
        node = self.model.nodes[ino]
        node.mode = stat.S_IFMT(node.mode) | (mode & ~stat.S_ISGID)

    @rule()
    def collect(self) -> None:
        """Everything that is garbage goes, orphans too."""
        db = self.state.db
        rows = [row[0] for row in db.execute("SELECT id FROM garbage").fetchall()]
        self._do(names_record.Collect(rows), 0)
        gone = [ino for ino in self.model.nodes if not self.model.links(ino)]
        objects = {self.model.nodes[ino].object for ino in gone} | self.garbage
        found = db.execute("SELECT file_id, collected FROM garbage").fetchall()
        assert dict(found) == {name: 1 for name in objects if name}
        self._do(names_record.Forget(rows, []), 0)
        for ino in gone:
            del self.model.nodes[ino]
        self.garbage.clear()

    @invariant()
    def agrees(self) -> None:
        db, model = self.state.db, self.model
        modes = dict(db.execute("SELECT ino, mode FROM inode").fetchall())
        assert modes == {ino: node.mode for ino, node in model.nodes.items()}
        assert self.state.inodes == len(modes)
        links = dict(db.execute("SELECT ino, nlink FROM inode").fetchall())
        assert links == {ino: model.links(ino) for ino in model.nodes}
        entries = db.execute("SELECT parent, name, ino FROM dirent").fetchall()
        expected = [
            (ino, name, child)
            for ino, node in model.nodes.items()
            for name, child in node.entries.items()
        ]
        assert sorted(entries) == sorted(expected)
        objects = dict(db.execute("SELECT ino, ifnull(file_id, '') FROM inode").fetchall())
        assert objects == {ino: node.object for ino, node in model.nodes.items()}
        orphans = {ino for ino in model.nodes if not model.links(ino)}
        noted = Counter(
            row[0] for row in db.execute("SELECT ino FROM garbage WHERE file_id IS NULL")
        )
        assert noted == Counter(orphans)


def test_the_tree_is_what_posix_says() -> None:
    run_state_machine_as_test(
        TreeMachine, settings=settings(max_examples=60, stateful_step_count=40, deadline=None)
    )


def test_link_counts_when_directories_replace_each_other(state: State) -> None:
    for parent, name in ((ROOT, b"a"), (ROOT, b"b"), (2, b"c")):  # inodes 2, 3 and 4 in 2
        apply(state, names.Create(parent, name, DIRECTORY, 0, 0, NOW))

    def links() -> dict[int, int]:
        return dict(state.db.execute("SELECT ino, nlink FROM inode").fetchall())

    assert links() == {ROOT: 4, 2: 3, 3: 2, 4: 2}
    apply(state, names.Rename(2, b"c", ROOT, b"b", 0, NOW))
    assert links() == {ROOT: 4, 2: 2, 3: 0, 4: 2}
    apply(state, names.Create(2, b"f", FILE, 0, 0, NOW))
    apply(state, names.Rename(ROOT, b"b", 2, b"f", EXCHANGE, NOW))
    assert links() == {ROOT: 3, 2: 3, 3: 0, 4: 2, 5: 1}


def test_a_refused_change_uses_nothing_up(state: State) -> None:
    apply(state, names.Create(ROOT, b"a", FILE, 0, 0, NOW))
    before, next_ino = state.position, state.next_ino
    with pytest.raises(StatusError):
        apply(state, names.Create(ROOT, b"a", FILE, 0, 0, NOW))
    assert (state.position, state.next_ino) == (before, next_ino)


def test_a_batch_is_all_or_nothing(state: State) -> None:
    state.begin()
    state.apply(Position(1, 1), Change(0, 0, 0, NOW, names.Create(ROOT, b"a", FILE, 0, 0, NOW)))
    state.rollback()
    assert state.position == Position(0, 0)
    assert (state.inodes, state.next_ino) == (1, 2)
    assert Reads(state.db, None).find_attr(2) is None  # type: ignore[arg-type]


def test_the_state_is_a_function_of_the_records() -> None:
    ops: list[Op] = [
        names_record.StartSession(b"t" * 16, "m"),
        names.Create(ROOT, b"a", FILE, 0, 0, NOW),
        names_record.PutContent(2, "M00/1", 3, NOW, False, b"abc", b"k\x02v"),
        names.Create(ROOT, b"d", DIRECTORY, 0, 0, NOW),
        names.Rename(ROOT, b"a", 3, b"b", 0, NOW),
        names_record.MakePending("M00/2"),
        names_record.PutXattr(2, b"trusted.x", b"1", "M00/1", None, NOW),
        names.Remove(3, b"b", False, NOW),
        names_record.EndSession(1),
        names_record.Collect([1, 2]),
        names_record.Forget([1], ["M00/1"]),
        names_record.ForgetSessions([1]),
    ]
    dumps = []
    for _ in range(2):
        state = new_state()
        with closing(state.db):
            for number, op in enumerate(ops, 1):
                apply(state, op, session=1, id=number, done_below=number)
            dumps.append(list(state.db.iterdump()))
    assert dumps[0] == dumps[1]


def test_an_inode_number_that_is_in_use_leaves_no_name(state: State) -> None:
    apply(state, names.ReserveInodes(10))
    apply(state, names.Create(ROOT, b"a", FILE, 0, 0, NOW, ino=5))
    before = list(state.db.iterdump())
    for op in (
        names.Create(ROOT, b"b", FILE, 0, 0, NOW, ino=5),
        names.Create(ROOT, b"b", DIRECTORY, 0, 0, NOW, ino=state.next_ino),
        make_file(ROOT, b"b", 5, NOW),
    ):
        with pytest.raises(StatusError) as caught:
            apply(state, op)
        assert caught.value.errno == errno.EINVAL
    assert list(state.db.iterdump()) == before


def make_file(parent: int, name: bytes, ino: int, now: int) -> names_record.MakeFile:
    return names_record.MakeFile(parent, name, ino, 0o600, 0, 0, now, now, now, now, b"", "")


def random_op(rng: random.Random, now: int) -> Op:
    """Something to do with the inodes 1 to 9, of which 1 to 5 are directories at first."""

    def ino() -> int:
        return rng.randrange(1, 10)

    def parent() -> int:
        return rng.randrange(1, 6)

    def name() -> bytes:
        return rng.choice((b"a", b"b", b"c"))

    default = acl.encode([acl.Entry(tag, 5) for tag in (acl.OWNER, acl.OWNING_GROUP, acl.OTHERS)])
    made = rng.choice((0, ino()))
    mode = rng.choice((FILE, DIRECTORY, DIRECTORY, DIRECTORY | stat.S_ISGID))
    makers: list[Callable[[], Op]] = [
        lambda: names.Create(parent(), name(), mode, 1, 2, now, ino=made),
        lambda: make_file(parent(), name(), ino(), now),
        lambda: names.Remove(parent(), name(), rng.random() < 0.8, now),
        lambda: names.Rename(
            parent(), name(), parent(), name(), rng.choice((0, 0, NOREPLACE, EXCHANGE)), now
        ),
        lambda: names.Link(ino(), parent(), name(), now),
        lambda: names.SetAttr(ino(), now, mode=rng.choice((0o700, 0o2700)), gid=rng.choice((1, 2))),
        lambda: names_record.PutXattr(
            ino(), acl.DEFAULT, rng.choice((default, None)), "", None, now
        ),
    ]
    return rng.choices(makers, (6, 2, 4, 3, 1, 1, 1))[0]()


def in_batches(
    ops: Iterable[Op], longest: int, rng: random.Random
) -> tuple[list[bytes | int | None], list[str]]:
    """The answers to *ops* when up to *longest* are done in one batch, and the database then."""
    state = new_state()
    with closing(state.db):
        apply(state, names.ReserveInodes(9))
        for ino, parent, name in ((2, 1, b"a"), (3, 1, b"b"), (4, 2, b"a"), (5, 4, b"a")):
            apply(state, names.Create(parent, name, DIRECTORY, 0, 0, NOW, ino=ino))
        answers: list[bytes | int | None] = []
        left = iter(ops)
        while batch := list(islice(left, rng.randint(1, longest))):
            state.begin()
            for op in batch:
                position = Position(1, state.position.index + 1)
                try:
                    answers.append(state.apply(position, Change(0, 0, 0, NOW, op))[0])
                except StatusError as exc:
                    answers.append(exc.errno)
            state.commit()
        return answers, list(state.db.iterdump())


def test_it_makes_no_difference_what_is_done_in_one_batch() -> None:
    refused: Counter[int] = Counter()
    for seed in range(150):
        rng = random.Random(seed)
        ops = [random_op(rng, NOW + number) for number in range(60)]
        alone, together = (in_batches(ops, longest, rng) for longest in (1, 20))
        assert alone == together, seed
        refused.update(answer for answer in alone[0] if isinstance(answer, int))
    assert refused.keys() >= {errno.EEXIST, errno.ENOENT, errno.EINVAL, errno.ENOTEMPTY}
    assert refused.total() < 150 * 60 * 0.8


def test_what_is_collected_leaves_nothing_behind(state: State) -> None:
    for ino, name in ((2, b"a"), (3, b"b"), (4, b"c")):
        apply(state, names.Create(ROOT, name, FILE, 0, 0, NOW))
        apply(state, names_record.PutXattr(ino, b"trusted.x", b"1", "", None, NOW))
    for ino, object_name in ((3, "M00/1"), (4, "M00/2"), (4, "M00/3")):
        apply(state, names_record.PutContent(ino, object_name, 1, NOW, False, b"1", b""))
    for name in (b"a", b"b"):
        apply(state, names.Remove(ROOT, name, False, NOW))

    def rows(what: str) -> list[tuple[object, ...]]:
        return state.db.execute(f"SELECT {what} ORDER BY 1").fetchall()

    assert rows("id, ino, file_id FROM garbage") == [(1, 4, "M00/2"), (2, 2, None), (3, 3, None)]
    for _ in range(2):
        apply(state, names_record.Collect([1, 2, 3, 99]))
        assert rows("ino FROM inode") == [(ROOT,), (4,)]
        assert state.inodes == 2
        assert rows("ino FROM xattr") == [(4,)]
        collected = [(1, 4, "M00/2", 1), (3, 3, "M00/1", 1)]
        assert rows("id, ino, file_id, collected FROM garbage") == collected
    apply(state, names_record.Forget([1, 3], ["M00/2", "M00/1"]))
    assert not rows("id FROM garbage")


def test_outcomes_that_arrived_before_the_transaction_ends_are_not_written(state: State) -> None:
    apply(state, names_record.StartSession(b"t" * 16, "m"))
    for number in range(1, 101):
        op = names.Create(ROOT, b"%d" % number, FILE, 0, 0, NOW)
        below = max(1, number - 3)
        answer = apply(state, op, session=1, id=number, done_below=below, lazily=True)
        for seen in range(below, number + 1):
            assert state.results.find(1, seen) is not None
        assert state.results.find(1, number) == answer
    state.settle()
    ids = [row[0] for row in state.db.execute("SELECT id FROM result ORDER BY id")]
    assert ids == [97, 98, 99, 100]
    assert state.results.find(1, 100) == answer


def test_outcomes_of_an_undone_batch_are_not_found(state: State) -> None:
    apply(state, names_record.StartSession(b"t" * 16, "m"))
    state.begin()
    op = names.Create(ROOT, b"a", FILE, 0, 0, NOW)
    state.apply(Position(1, 2), Change(1, 1, 1, NOW, op))
    assert state.results.find(1, 1) is not None
    assert state.results.find_committed(state.db, 1, 1) is None
    state.rollback()
    assert state.results.find(1, 1) is None


def test_outcomes_are_kept_until_they_are_not_needed(state: State) -> None:
    apply(state, names_record.StartSession(b"t" * 16, "m"))
    for number in range(1, 65):
        op = names.Create(ROOT, b"%d" % number, FILE, 0, 0, NOW)
        answer = apply(state, op, session=1, id=number, done_below=max(1, number - 3))
        assert state.results.find(1, number) == answer
    assert state.results.find(1, 28) is None
    assert state.results.find(1, 61) is not None
    apply(state, names_record.ForgetSessions([1]))
    assert state.results.find(1, 64) is not None, "only ended sessions can be forgotten"
    apply(state, names_record.EndSession(1))
    apply(state, names_record.ForgetSessions([1]))
    assert state.results.find(1, 64) is None


def test_cookies_rise_and_a_replaced_name_keeps_its_own(state: State) -> None:
    for name in (b"a", b"b", b"c"):
        apply(state, names.Create(ROOT, name, FILE, 0, 0, NOW))
    apply(state, names.Rename(ROOT, b"a", ROOT, b"b", 0, NOW))
    apply(state, names.Rename(ROOT, b"b", ROOT, b"z", 0, NOW))
    rows = state.db.execute("SELECT cookie, name FROM dirent ORDER BY cookie").fetchall()
    assert rows == [(3, b"c"), (5, b"z")]


def test_a_deep_tree_has_no_cycles(state: State) -> None:
    parent = ROOT
    inos = []
    for number in range(20):
        apply(state, names.Create(parent, b"d", DIRECTORY, 0, 0, NOW))
        parent = number + 2
        inos.append(parent)
    for ino in inos:
        with pytest.raises(StatusError) as caught:
            apply(state, names.Rename(ROOT, b"d", ino, b"x", 0, NOW))
        assert caught.value.errno == errno.EINVAL


def test_objects_changed_by_plain_clients(state: State) -> None:
    apply(state, names.Create(ROOT, b"a", FILE, 0, 0, NOW))
    apply(state, names.Link(2, ROOT, b"b", NOW))
    apply(state, names_record.PutContent(2, "M00/1", 3, NOW, True, None, b""))
    apply(state, names_record.ObjectChanged("M00/1", 9, NOW + 1))
    attr = Reads(state.db, None).find_attr(2)  # type: ignore[arg-type]
    assert attr is not None
    assert (attr.size, attr.mtime_ns, attr.version) == (9, NOW + 1, 2)
    apply(state, names_record.ObjectDeleted("M00/1"))
    assert state.db.execute("SELECT count(*) FROM dirent").fetchone() == (0,)
    assert state.db.execute("SELECT ino, file_id FROM garbage").fetchall() == [(2, None)]
    apply(state, names_record.ObjectDeleted("M00/1"))


def test_an_appender_that_a_plain_client_made_a_normal_file(state: State) -> None:
    apply(state, names.Create(ROOT, b"a", FILE, 0, 0, NOW))
    apply(state, names_record.PutContent(2, "M00/1", 3, NOW, True, None, b""))
    apply(state, names_record.ObjectRenamed("M00/1", "M00/2"))
    attr = Reads(state.db, None).find_attr(2)  # type: ignore[arg-type]
    assert attr is not None
    assert (attr.file_id, attr.size, attr.version) == ("M00/2", 3, 2)
    assert state.db.execute("SELECT in_place FROM inode WHERE ino = 2").fetchone() == (0,)
    # What was about to be deleted is not ours any more.
    apply(state, names_record.MakePending("M00/3"))
    apply(state, names_record.ObjectRenamed("M00/3", "M00/4"))
    assert state.db.execute("SELECT count(*) FROM pending").fetchone() == (0,)
