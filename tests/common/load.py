"""Load on a group by file id, from several threads, with everything noted in a `Ledger`.

Each worker has files and a seed of its own and does one thing at a time, so what it does depends
on the seed and on what servers answer. Servers may die, be cut off and be full meanwhile: a worker
asks another tracker, gives files up whose last operation was not answered (the ledger says what
they may be), and goes on.
"""

from __future__ import annotations

import contextlib
import errno
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import TypeVar

from tests.common.cluster import Cluster, Daemon
from tests.common.ledger import File, Ledger, Version
from tests.common.plain import Address, PlainClient, PlainError
from tests.common.waiting import wait_until

_TIMEOUT_S = 5.0
_PACE_S = 0.005
"""Between operations: replication has to get its turn on a small machine."""
_PAUSE_S = 0.02
"""After a failure, so that a dead server is not asked thousands of times."""
_LIVE_MAX = 60

_Answer = TypeVar("_Answer")


class Worker:
    """One thread's load: ``run`` until ``stop`` is set."""

    def __init__(self, cluster: Cluster, group: str, ledger: Ledger, seed: int) -> None:
        self.counts: Counter[str] = Counter()
        """How often each kind was acknowledged; failures count as ``kind:why``."""
        self._trackers: Sequence[Daemon] = cluster.trackers
        self._group = group
        self._ledger = ledger
        self._draw = random.Random(seed)
        self._files: list[File] = []
        self._client: PlainClient | None = None
        self._turn = seed  # which tracker it asks
        self._kinds: dict[str, tuple[int, Callable[[], None]]] = {
            "upload": (6, self._upload),
            "appender": (2, self._upload_appender),
            "slave": (1, self._upload_slave),
            "append": (3, self._append),
            "modify": (2, self._modify),
            "truncate": (2, self._truncate),
            "metadata": (3, self._set_metadata),
            "regenerate": (1, self._regenerate),
            "delete": (3, self._delete),
        }
        self.error: BaseException | None = None

    def run(self, stop: threading.Event) -> None:
        """Work until told to stop. An error that no fault explains ends it; see `error`."""
        weights = [weight for weight, _ in self._kinds.values()]
        try:
            while not stop.is_set():
                (kind,) = self._draw.choices(list(self._kinds), weights)
                self._one(kind, stop)
        except BaseException as exc:
            self.error = exc
        finally:
            self._disconnect()

    def _one(self, kind: str, stop: threading.Event) -> None:
        try:
            self._kinds[kind][1]()
        except (_NothingToDo, _NoTracker) as exc:
            self.counts[f"{kind}:{type(exc).__name__}"] += 1
        except PlainError as exc:
            self.counts[f"{kind}:{exc.status}"] += 1
        except (OSError, EOFError) as exc:
            self.counts[f"{kind}:{type(exc).__name__}"] += 1
            self._disconnect()
        else:
            self.counts[kind] += 1
            stop.wait(_PACE_S)
            return
        stop.wait(_PAUSE_S)

    # --- the operations -------------------------------------------------------------------------

    def _upload(self, *, appender: bool = False) -> None:
        at = self._ask(lambda client: client.find_store(self._group))
        data = self._content()
        with self._ledger.uploading(data):
            file_id = self._connected().upload(data, "bin", appender=appender, at=at)
        what = f"{'appender' if appender else 'upload'} of {len(data)} at {at[0][0]}"
        self._keep(self._ledger.uploaded(file_id, data, at[0], appender=appender, what=what))

    def _upload_appender(self) -> None:
        self._upload(appender=True)

    def _upload_slave(self) -> None:
        master = self._pick(lambda file: not file.appender and "_s" not in file.name)
        data = self._content()
        at = self._source_of(master)
        prefix = f"_s{self._draw.randrange(10**9):09d}"
        with self._ledger.uploading(data):
            file_id = self._connected().upload_slave(master.file_id, prefix, "bin", data, at=at)
        self._keep(self._ledger.uploaded(file_id, data, at, what=f"slave at {at[0]}"))

    def _append(self) -> None:
        file = self._pick(lambda file: file.appender)
        old, data = _content_of(file), self._content()
        at = self._source_of(file)
        what = f"append {len(data)} at {len(old)}"
        with self._changing(file, what, Version.of(old + data, file.metadata)):
            self._connected().append(file.file_id, data, at=at)

    def _modify(self) -> None:
        file = self._pick(lambda file: file.appender and bool(file.data))
        old, data = _content_of(file), self._content()
        offset = self._draw.randrange(len(old) + 1)
        new = old[:offset] + data + old[offset + len(data) :]
        at = self._source_of(file)
        what = f"modify {len(data)} at {offset}"
        with self._changing(file, what, Version.of(new, file.metadata)):
            self._connected().modify(file.file_id, offset, data, at=at)

    def _truncate(self) -> None:
        file = self._pick(lambda file: file.appender and bool(file.data))
        old = _content_of(file)
        size = self._draw.randrange(len(old) * 5 // 4 + 1)
        new = old[:size].ljust(size, b"\0")
        at = self._source_of(file)
        with self._changing(file, f"truncate to {size}", Version.of(new, file.metadata)):
            self._connected().truncate(file.file_id, size, at=at)

    def _set_metadata(self) -> None:
        file = self._pick(lambda file: True)
        metadata = {f"key{n}": str(self._draw.random()) for n in range(self._draw.randrange(4))}
        at = self._source_of(file)
        what = f"metadata {metadata} at {at[0]}"
        with self._changing(file, what, Version.of(file.data, metadata)):
            self._connected().set_metadata(file.file_id, metadata, at=at)

    def _regenerate(self) -> None:
        # Metadata would stay behind under a name that is gone (wire.md, command 38).
        file = self._pick(lambda file: file.appender and not file.metadata)
        data = _content_of(file)
        at = self._source_of(file)
        with self._ledger.uploading(data), self._changing(file, "regenerate", Version(None)):
            new_id = self._connected().regenerate(file.file_id, at=at)
        self._files.remove(file)
        self._keep(self._ledger.uploaded(new_id, data, at, what=f"was {file.file_id}"))

    def _delete(self) -> None:
        file = self._pick(lambda file: True)
        # Any server may be asked to delete; a file that has not arrived there is refused.
        at = self._ask(lambda client: client.find_update(file.file_id))
        with self._changing(file, f"delete at {at[0]}", Version(None)):
            self._connected().delete(file.file_id, at=at)
        self._files.remove(file)

    # --- what they share ------------------------------------------------------------------------

    @contextlib.contextmanager
    def _changing(self, file: File, what: str, outcome: Version) -> Iterator[None]:
        try:
            with self._ledger.changing(file, what, outcome):
                yield
        finally:
            if file.unsure:
                self._files.remove(file)

    def _content(self) -> bytes:
        size = self._draw.choice((1, 100, 3000, 3000, 70_000, 300_000))
        return self._draw.randbytes(self._draw.randrange(1, size + 1))

    def _pick(self, wanted: Callable[[File], bool]) -> File:
        found = [file for file in self._files if wanted(file)]
        if not found:
            raise _NothingToDo
        return self._draw.choice(found)

    def _keep(self, file: File) -> None:
        self._files.append(file)
        if len(self._files) > _LIVE_MAX:
            del self._files[self._draw.randrange(len(self._files))]

    def _source_of(self, file: File) -> Address:
        """The file's source, if trackers name it now.

        Another server may lack the last changes of the file: FastDFS does not promise that changes
        made there and changes on the way to it add up.
        """
        at = self._ask(lambda client: client.find_update(file.file_id))
        if at != file.source:
            raise _NothingToDo
        return at

    def _ask(self, question: Callable[[PlainClient], _Answer]) -> _Answer:
        """Ask the tracker of our connection, and after a failure the others."""
        problem: Exception | None = None
        for _ in self._trackers:
            try:
                return question(self._connected())
            except (OSError, EOFError) as exc:
                problem = exc
                self._disconnect()
                self._turn += 1
        # Nothing was asked of a storage, so nothing is in doubt.
        raise _NoTracker(str(problem))

    def _connected(self) -> PlainClient:
        if self._client is None:
            tracker = self._trackers[self._turn % len(self._trackers)]
            self._client = PlainClient((tracker.address, tracker.port), _TIMEOUT_S)
        return self._client

    def _disconnect(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None


class _NothingToDo(Exception):
    """There is no file that the operation could be done on now."""


class _NoTracker(Exception):
    """No tracker answers."""


class Load:
    """Several workers beside the test::

    with Load(cluster, "group1", ledger, seed=1) as load:
        load.wait_acknowledged(100)
        cluster.storages[0].kill()
    """

    def __init__(
        self, cluster: Cluster, group: str, ledger: Ledger, seed: int, workers: int = 3
    ) -> None:
        self.ledger = ledger
        self.workers = [
            Worker(cluster, group, ledger, seed * 1000 + number) for number in range(workers)
        ]
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=worker.run, args=(self._stop,)) for worker in self.workers
        ]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        if kind is None:
            self._raise_errors()

    @property
    def counts(self) -> Counter[str]:
        """What all workers did, by kind."""
        # Copied at once: the workers go on counting.
        return sum((Counter(dict(worker.counts)) for worker in self.workers), Counter[str]())

    @property
    def refused_for_space(self) -> int:
        """How many operations were answered with "no space"."""
        suffix = f":{errno.ENOSPC}"
        return sum(count for kind, count in self.counts.items() if kind.endswith(suffix))

    def wait_acknowledged(self, more: int, timeout_s: float = 180.0) -> None:
        """Wait until that many further operations were acknowledged."""
        wanted = self.ledger.acknowledged + more

        def reached() -> bool:
            self._raise_errors()
            return self.ledger.acknowledged >= wanted

        try:
            wait_until(reached, f"{more} operations", timeout_s=timeout_s)
        except TimeoutError as exc:
            raise TimeoutError(f"{exc}; so far: {dict(self.counts)}") from None

    def _raise_errors(self) -> None:
        for worker in self.workers:
            if worker.error is not None:
                raise worker.error


def _content_of(file: File) -> bytes:
    assert file.data is not None, f"{file.file_id} is deleted and still used"
    return file.data
