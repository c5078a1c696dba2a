"""``fdfs://group1/M00/...`` for fsspec, and so for pandas, dask, pyarrow and others::

    with fsspec.open("fdfs://group1/M00/00/1A/xxxx.csv", trackers="10.0.0.1") as file:
        ...

The trackers may also come from the environment variable FDFS_TRACKERS. A FastDFS storage chooses
the name of a new file: what is written to ``fdfs://group1/anything.csv`` is stored in group1 with
the extension ``csv``, and its id is the ``file_id`` of the file that was written, once it is
closed; ``pipe_file`` and ``put_file`` return it. Appenders are written under their own ids: "ab"
appends, "wb" starts anew. There are no directories, and files cannot be listed.

File systems with the same options share their connections, over all threads; the last one that goes
(``clear_instance_cache`` drops those that fsspec keeps) closes them.
"""

from __future__ import annotations

import os
import tempfile
import threading
import weakref
from datetime import datetime, timezone
from typing import IO, Any

from fsspec.spec import AbstractBufferedFile, AbstractFileSystem

from fdfsfuse import blocking
from fdfsfuse.client.sources import extension_of
from fdfsfuse.errors import FdfsError, NotFoundError, UsageError
from fdfsfuse.proto.fileid import FileKind, decode_name

ENVIRONMENT = "FDFS_TRACKERS"

_clients: weakref.WeakValueDictionary[str, blocking.Client] = weakref.WeakValueDictionary()
_lock = threading.Lock()


class FdfsFileSystem(AbstractFileSystem):
    """Files of a FastDFS cluster by their ids.

    Args:
        trackers: ``host[:port]``, several with commas; the environment's FDFS_TRACKERS if None.
        client_options: further arguments of `fdfsfuse.blocking.Client`.
        storage_options: those of every fsspec file system.
    """

    protocol = "fdfs"
    root_marker = ""

    def __init__(
        self,
        trackers: str | None = None,
        client_options: dict[str, Any] | None = None,
        **storage_options: Any,
    ) -> None:
        super().__init__(**storage_options)
        trackers = trackers or os.environ.get(ENVIRONMENT)
        if not trackers:
            raise UsageError(f"no tracker is known: say trackers=..., or set {ENVIRONMENT}")
        self.client = _shared_client(trackers, client_options or {})

    # --- one file --------------------------------------------------------------------------------

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """Size, time, CRC-32, kind and source of a file; the volume itself is a directory."""
        path = self._strip_protocol(path)
        if "/" not in path:
            return {"name": path, "size": 0, "type": "directory"}
        details = self.client.info(_file_id(path))
        return {
            "name": path,
            "size": details.size,
            "type": "file",
            "created": details.created,
            "crc32": details.crc32,
            "kind": details.kind.name.lower(),
            "source": details.source,
        }

    def exists(self, path: str, **_: Any) -> bool:
        """Whether there is such a file, or such a volume."""
        try:
            path = self._strip_protocol(path)
            return self.client.exists(_file_id(path)) if "/" in path else True
        except (NotFoundError, UsageError):
            return False

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        """The file itself. FastDFS cannot list files: a volume looks empty."""
        info = self.info(path)
        found = [info] if info["type"] == "file" else []
        return found if detail else [entry["name"] for entry in found]

    def cat_file(
        self, path: str, start: int | None = None, end: int | None = None, **_: Any
    ) -> bytes:
        """The bytes from *start* to *end*; negative ones count from the end."""
        file_id = _file_id(self._strip_protocol(path))
        if (start is not None and start < 0) or (end is not None and end < 0):
            size = self.client.info(file_id, flags=1).size
            start = max(0, size + start) if start is not None and start < 0 else start
            end = size + end if end is not None and end < 0 else end
        start = start or 0
        if end is not None and end <= start:
            return b""
        return self.client.download(file_id, start, None if end is None else end - start)

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: Any) -> str:
        """Store *value* and return the id of the file."""
        path = self._strip_protocol(path)
        if _is_appender(path):
            return self._write_appender(path, value)
        group, extension = _split_new(path)
        return self.client.upload(value, group=group, extension=extension)

    def put_file(self, lpath: str, rpath: str, callback: Any = None, **_: Any) -> str:
        """Upload a local file and return its id."""
        rpath = self._strip_protocol(rpath)
        if _is_appender(rpath):
            return self._write_appender(rpath, lpath)
        group, extension = _split_new(rpath)
        progress = None if callback is None else callback.relative_update
        return self.client.upload(
            lpath, group=group, extension=extension or extension_of(lpath), progress=progress
        )

    def get_file(
        self, rpath: str, lpath: Any, callback: Any = None, outfile: Any = None, **_: Any
    ) -> None:
        """Download to a local file, which appears when it is complete."""
        progress = None if callback is None else callback.relative_update
        target = lpath if outfile is None else outfile
        file_id = _file_id(self._strip_protocol(rpath))
        self.client.download_to(file_id, target, progress=progress)

    def rm_file(self, path: str) -> None:
        """Delete a file."""
        self.client.delete(_file_id(self._strip_protocol(path)))

    def _rm(self, path: str) -> None:
        self.rm_file(path)

    def created(self, path: str) -> datetime:
        """When the file was stored."""
        return datetime.fromtimestamp(self.info(path)["created"], timezone.utc)

    def modified(self, path: str) -> datetime:
        """When the file was stored or changed."""
        return self.created(path)

    def _open(
        self,
        path: str,
        mode: str = "rb",
        block_size: int | None = None,
        autocommit: bool = True,
        cache_options: dict[str, Any] | None = None,
        **options: Any,
    ) -> FdfsFile:
        return FdfsFile(
            self,
            path,
            mode,
            block_size or "default",
            autocommit,
            cache_options=cache_options,
            **options,
        )

    def _write_appender(self, file_id: str, content: bytes | str) -> str:
        self.client.truncate(file_id, 0)
        self.client.append(file_id, content)
        return file_id


class FdfsFile(AbstractBufferedFile):
    """A file that is read in blocks, or written at once when it is closed.

    Attributes:
        file_id: the id of the file; of a new one from its end on.
    """

    def __init__(
        self, fs: FdfsFileSystem, path: str, mode: str, *args: Any, **options: Any
    ) -> None:
        self.file_id = path if mode in ("rb", "ab") or _is_appender(path) else None
        self._spooled: IO[bytes] | None = None
        if mode in ("rb", "ab"):
            _file_id(path)
        if mode == "ab" and not _is_appender(path):
            raise UsageError(f"{path} is not an appender: only a file uploaded as one can grow")
        super().__init__(fs, path, mode, *args, **options)

    def _fetch_range(self, start: int, end: int) -> bytes:
        client: blocking.Client = self.fs.client
        return client.download(self.path, start, end - start) if end > start else b""

    def _initiate_upload(self) -> None:
        self._spooled = tempfile.TemporaryFile()  # noqa: SIM115

    def _upload_chunk(self, final: bool = False) -> bool:
        assert self._spooled is not None
        self.buffer.seek(0)
        self._spooled.write(self.buffer.read())
        if final and self.autocommit:
            self.commit()
        return True

    def commit(self) -> None:
        """Store what was written."""
        assert self._spooled is not None
        client = self.fs.client
        with self._spooled as content:
            content.seek(0)
            if self.file_id is None:
                group, extension = _split_new(self.path)
                self.file_id = client.upload(content, group=group, extension=extension)
            else:
                if self.mode == "wb":
                    client.truncate(self.file_id, 0)
                client.append(self.file_id, content)

    def discard(self) -> None:
        """Forget what was written."""
        if self._spooled is not None:
            self._spooled.close()


def _shared_client(trackers: str, options: dict[str, Any]) -> blocking.Client:
    key = repr((trackers, sorted(options.items())))
    with _lock:
        client = _clients.get(key)
        if client is None:
            client = _clients[key] = blocking.Client(trackers, **options)
        return client


def _file_id(path: str) -> str:
    """*path* if it is a file id; NotFoundError if not, as for every path without a file."""
    if "/M" not in path:
        raise NotFoundError(2, path)
    return path


def _is_appender(path: str) -> bool:
    try:
        return decode_name(path.partition("/")[2]).kind is FileKind.APPENDER
    except FdfsError:
        return False


def _split_new(path: str) -> tuple[str, str]:
    """Group and extension of a new file."""
    group, _, name = path.partition("/")
    try:
        decode_name(name)
    except FdfsError:
        return group, extension_of(name)
    raise UsageError(f"{path} is the id of a file that never changes")
