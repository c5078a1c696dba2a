"""The tree and the objects of a volume in memory: what its storage answers to each request.

Model-like and small: it follows proto/names.py, and checks what a storage would check.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from msgspec.structs import replace

from fdfsfuse.errors import StatusError
from fdfsfuse.proto import names
from fdfsfuse.proto.fileid import encode_base, encode_source, make_suffix
from fdfsfuse.proto.names import Attr


@dataclass
class Directory:
    """Entries by name: (cookie, ino)."""

    entries: dict[bytes, tuple[int, int]] = field(default_factory=dict)


class FakeTree:
    """A volume. ``grants``: whether it gives grants; ``granted``: of which directories."""

    def __init__(self) -> None:
        self.view = 1
        self.attrs: dict[int, Attr] = {1: _attr(1, stat.S_IFDIR | 0o755, 0, 0, 0)}
        self.directories: dict[int, Directory] = {1: Directory()}
        self.xattrs: dict[int, dict[bytes, bytes]] = {}
        self.objects: dict[str, bytearray] = {}
        self.metadata: dict[str, dict[bytes, bytes]] = {}
        self.named: dict[str, int] = {}
        self.pending: set[str] = set()
        self.garbage: set[str] = set()
        self.object_mtime_ns = 1_700_000_000 * 10**9
        self.held: set[int] = set()
        self.grants = True
        self.granted: set[int] = set()
        self._next_ino = 2
        self._cookie = 0
        self._serial = 0
        self._handlers: dict[type, Callable[[Any], Any]] = {
            names.Lookup: self._lookup,
            names.GetAttr: lambda r: self._inode(r.ino),
            names.ReadDir: self._read_dir,
            names.Open: self._open,
            names.ListXattrs: self._list_xattrs,
            names.StatFs: lambda r: names.Space(1000 << 20, 600 << 20, 500 << 20, len(self.attrs)),
            names.LookupObject: lambda r: self._object(r.file_id),
            names.ListObjects: self._list_objects,
            names.KeepAlive: lambda r: names.Done(),
            names.Holds: self._holds,
            names.Grant: self._grant,
            names.ReserveInodes: self._reserve_inodes,
            names.CreateFile: self._create_file,
            names.Create: self._create,
            names.Remove: self._remove,
            names.Rename: self._rename,
            names.Link: self._link,
            names.Adopt: self._adopt,
            names.SetAttr: self._set_attr,
            names.SetXattr: self._set_xattr,
            names.RemoveXattr: self._remove_xattr,
            names.StoreContent: self._store_content,
            names.NewObject: self._new_object,
            names.NameObject: self._name_object,
            names.MakeWritable: self._make_writable,
            names.CommitWrite: self._commit_write,
            names.Truncate: self._truncate,
        }

    def execute(self, request: names.Request) -> Any:
        """Carry out a request at once."""
        return self._handlers[type(request)](request)

    def upload(self, data: bytes, mtime_s: int = 1_700_000_000) -> str:
        """An unnamed object, as a FastDFS client makes it."""
        self._serial += 1
        source = encode_source("127.0.0.3")
        base = encode_base(source, mtime_s, len(data), 0x12345678, make_suffix("txt", 1), 7)
        file_id = f"M00/{self._serial >> 8:02X}/{self._serial % 256:02X}/{base}"
        self.objects[file_id] = bytearray(data)
        return file_id

    def modify(self, file_id: str, data: bytes) -> None:
        """Change an unnamed object in place, as a FastDFS client does."""
        self.objects[file_id][:] = data
        self.object_mtime_ns += 1

    def by_path(self, path: str) -> Attr:
        """The inode at a path inside the volume."""
        ino = 1
        for part in path.encode().split(b"/"):
            ino = self.directories[ino].entries[part][1]
        return self.attrs[ino]

    def content(self, path: str) -> bytes:
        """The stored content at a path."""
        attr = self.by_path(path)
        return bytes(self.objects[attr.file_id]) if attr.file_id else b""

    # --- inodes ----------------------------------------------------------------------------------

    def _inode(self, ino: int) -> Attr:
        if ino not in self.attrs:
            raise StatusError(errno.ESTALE)
        return self.attrs[ino]

    def _update(self, ino: int, **changes: Any) -> Attr:
        self.attrs[ino] = replace(self._inode(ino), **changes)
        return self.attrs[ino]

    def _directory(self, ino: int) -> Directory:
        if not stat.S_ISDIR(self._inode(ino).mode):
            raise StatusError(errno.ENOTDIR)
        return self.directories[ino]

    def _lookup(self, request: names.Lookup) -> Attr:
        entries = self._directory(request.parent).entries
        if request.name not in entries:
            raise StatusError(errno.ENOENT)
        return self.attrs[entries[request.name][1]]

    def _enter(self, parent: int, name: bytes, ino: int) -> None:
        self._cookie += 1
        self._directory(parent).entries[name] = (self._cookie, ino)

    def _touch(self, parent: int, now_ns: int, links: int = 0) -> None:
        nlink = self.attrs[parent].nlink + links
        self._update(parent, mtime_ns=now_ns, ctime_ns=now_ns, nlink=nlink)

    def _check_free(self, parent: int, name: bytes) -> None:
        if name in self._directory(parent).entries:
            raise StatusError(errno.EEXIST)

    def _create(self, request: names.Create) -> Attr:
        self._check_free(request.parent, request.name)
        ino = request.ino or self._new_ino()
        assert ino < self._next_ino
        if ino in self.attrs:
            raise StatusError(errno.EINVAL)
        attr = _attr(ino, request.mode, request.uid, request.gid, request.now_ns)
        if stat.S_ISDIR(request.mode):
            attr = replace(attr, nlink=2)
            self.directories[ino] = Directory()
        self.attrs[ino] = replace(
            attr, rdev=request.rdev, target=request.target, size=len(request.target)
        )
        self._enter(request.parent, request.name, ino)
        self._touch(request.parent, request.now_ns, int(stat.S_ISDIR(request.mode)))
        return self.attrs[ino]

    def _new_ino(self) -> int:
        self._next_ino += 1
        return self._next_ino - 1

    def _grant(self, request: names.Grant) -> names.Done:
        self._directory(request.ino)
        if not self.grants:
            raise StatusError(errno.EAGAIN)
        self.granted.add(request.ino)
        return names.Done()

    def _reserve_inodes(self, request: names.ReserveInodes) -> names.Reserved:
        first, self._next_ino = self._next_ino, self._next_ino + request.count
        return names.Reserved(first, request.count)

    def _create_file(self, request: names.CreateFile) -> Attr:
        ino, mode = request.ino, stat.S_IFREG | request.mode
        assert ino < self._next_ino
        if ino in self.attrs:
            raise StatusError(errno.EINVAL)
        self._check_free(request.parent, request.name)
        self.attrs[ino] = replace(
            _attr(ino, mode, request.uid, request.gid, request.mtime_ns),
            atime_ns=request.atime_ns,
            ctime_ns=request.ctime_ns,
        )
        self._enter(request.parent, request.name, ino)
        self._update(request.parent, mtime_ns=request.parent_ns, ctime_ns=request.parent_ns)
        file_id = self.upload(request.data) if request.data else ""
        self._name(ino, file_id, len(request.data), request.mtime_ns, False)
        self._xattrs_of(ino, "").update(request.xattrs)
        return self._update(ino, ctime_ns=request.ctime_ns)

    def _read_dir(self, request: names.ReadDir) -> names.Listing:
        entries = sorted(
            (cookie, name, ino)
            for name, (cookie, ino) in self._directory(request.ino).entries.items()
            if cookie > request.cookie
        )
        rows = [names.DirEntry(c, n, self.attrs[i]) for c, n, i in entries[: request.limit]]
        return names.Listing(rows, len(entries) <= request.limit)

    def _unlinked(self, ino: int, now_ns: int) -> Attr:
        attr = self._update(ino, nlink=self.attrs[ino].nlink - 1, ctime_ns=now_ns)
        if attr.nlink == 0 and ino not in self.held:
            self._drop_object(attr)
            del self.attrs[ino]
        return attr

    def _remove(self, request: names.Remove) -> Attr:
        ino = self._lookup(names.Lookup(request.parent, request.name)).ino
        _check_inode(ino, request.ino)
        is_directory = ino in self.directories
        if is_directory != request.directory:
            raise StatusError(errno.ENOTDIR if request.directory else errno.EISDIR)
        if is_directory:
            if self.directories[ino].entries:
                raise StatusError(errno.ENOTEMPTY)
            del self.directories[ino]
        del self.directories[request.parent].entries[request.name]
        self._touch(request.parent, request.now_ns, -int(is_directory))
        if is_directory:
            return replace(self.attrs.pop(ino), nlink=0)
        return self._unlinked(ino, request.now_ns)

    def _rename(self, request: names.Rename) -> names.Renamed:
        moved = self._lookup(names.Lookup(request.parent, request.name))
        target = self._directory(request.new_parent).entries.get(request.new_name)
        _check_inode(moved.ino, request.ino)
        _check_inode(target[1] if target is not None else 0, request.replaces)
        replaced = None
        if target is not None and target[1] == moved.ino:
            return names.Renamed(moved)
        if target is not None:
            if request.flags & 1:
                raise StatusError(errno.EEXIST)
            del self.directories[request.new_parent].entries[request.new_name]
            replaced = self._unlinked(target[1], request.now_ns)
        del self.directories[request.parent].entries[request.name]
        self._enter(request.new_parent, request.new_name, moved.ino)
        for parent in (request.parent, request.new_parent):
            self._touch(parent, request.now_ns)
        return names.Renamed(self._update(moved.ino, ctime_ns=request.now_ns), replaced)

    def _link(self, request: names.Link) -> Attr:
        self._check_free(request.parent, request.name)
        nlink = self._inode(request.ino).nlink + 1
        self._enter(request.parent, request.name, request.ino)
        self._touch(request.parent, request.now_ns)
        return self._update(request.ino, nlink=nlink, ctime_ns=request.now_ns)

    def _set_attr(self, request: names.SetAttr) -> Attr:
        changes: dict[str, int] = {"ctime_ns": request.now_ns}
        for key in ("uid", "gid", "atime_ns", "mtime_ns"):
            if getattr(request, key) is not None:
                changes[key] = getattr(request, key)
        if request.mode is not None:
            assert request.mode == stat.S_IMODE(request.mode)
            changes["mode"] = stat.S_IFMT(self._inode(request.ino).mode) | request.mode
        return self._update(request.ino, **changes)

    def _holds(self, request: names.Holds) -> names.Done:
        self.held |= set(request.added)
        self.held -= set(request.removed)
        return names.Done()

    # --- xattrs ----------------------------------------------------------------------------------

    def _xattrs_of(self, ino: int, file_id: str) -> dict[bytes, bytes]:
        if ino:
            self._inode(ino)
            return self.xattrs.setdefault(ino, {})
        self._object(file_id)
        return self.metadata.setdefault(file_id, {})

    def _list_xattrs(self, request: names.ListXattrs) -> names.Xattrs:
        own = dict(self._xattrs_of(request.ino, request.file_id))
        following = self._following(request)[1] if request.following else []
        return names.Xattrs(
            own, {attr.ino: dict(self._xattrs_of(attr.ino, "")) for _, attr in following}
        )

    def _set_xattr(self, request: names.SetXattr) -> names.Done:
        self._xattrs_of(request.ino, request.file_id)[request.name] = request.value
        return self._changed_xattr(request)

    def _remove_xattr(self, request: names.RemoveXattr) -> names.Done:
        xattrs = self._xattrs_of(request.ino, request.file_id)
        if xattrs.pop(request.name, None) is None:
            raise StatusError(errno.ENODATA)
        return self._changed_xattr(request)

    def _changed_xattr(self, request: names.SetXattr | names.RemoveXattr) -> names.Done:
        if request.ino:
            self._update(request.ino, ctime_ns=request.now_ns)
        return names.Done()

    # --- objects ---------------------------------------------------------------------------------

    def _content(self, file_id: str) -> bytearray:
        if file_id not in self.objects:
            raise StatusError(errno.ENOENT)
        return self.objects[file_id]

    def _owner(self, file_id: str) -> Attr:
        if file_id not in self.named:
            raise StatusError(errno.ENOENT)
        return self.attrs[self.named[file_id]]

    def _object(self, file_id: str) -> Attr:
        content = self._content(file_id)
        if file_id in self.named:
            return self._owner(file_id)
        if file_id in self.pending | self.garbage:
            raise StatusError(errno.ENOENT)
        then = self.object_mtime_ns
        return replace(_attr(0, 0, 0, 0, then), nlink=0, size=len(content), file_id=file_id)

    def _list_objects(self, request: names.ListObjects) -> names.ObjectListing:
        unnamed = set(self.objects) - set(self.named) - self.pending - self.garbage
        prefix = f"{request.path}/" if request.path else ""
        below = {o[len(prefix) :] for o in unnamed if o.startswith(prefix)}
        found = sorted({o.split("/")[0] for o in below} - {""})
        found = [name for name in found if name > request.after]
        leaf = request.path.count("/") == 2
        rows = [
            names.ObjectEntry(name, self._object(prefix + name) if leaf else None)
            for name in found[: request.limit]
        ]
        return names.ObjectListing(rows, len(found) <= request.limit)

    def _adopt(self, request: names.Adopt) -> names.Renamed:
        if request.file_id in self.named:
            raise StatusError(errno.EBUSY)
        found = self._object(request.file_id)
        replaced = None
        old = self._directory(request.parent).entries.get(request.name)
        if old is not None:
            if not request.replace:
                raise StatusError(errno.EEXIST)
            replaced = self._unlinked(old[1], request.now_ns)
        ino = self._new_ino()
        attr = _attr(ino, stat.S_IFREG | 0o644, request.uid, request.gid, found.mtime_ns)
        self.attrs[ino] = replace(attr, size=found.size, file_id=request.file_id, version=1)
        self.named[request.file_id] = ino
        self._enter(request.parent, request.name, ino)
        return names.Renamed(self.attrs[ino], replaced)

    def _open(self, request: names.Open) -> names.Opened:
        attr = self._inode(request.ino)
        parent, following = self._following(request) if request.following else (0, [])
        entries = [
            names.FollowingEntry(name, found, self._small(found, request))
            for name, found in following
        ]
        return names.Opened(attr, self._small(attr, request), parent, entries)

    def _small(self, attr: Attr, request: names.Open) -> bytes | None:
        if attr.size > request.max_data or not stat.S_ISREG(attr.mode):
            return None
        data = bytes(self.objects[attr.file_id]) if attr.file_id else b""
        # As a storage: no content rather than one of another size.
        return data if len(data) == attr.size else None

    def _following(
        self, request: names.Open | names.ListXattrs
    ) -> tuple[int, list[tuple[bytes, Attr]]]:
        for parent, directory in self.directories.items():
            rows: list[tuple[Any, bytes, int]] = [
                (name if request.by_name else cookie, name, ino)
                for name, (cookie, ino) in directory.entries.items()
            ]
            own = [key for key, _, ino in rows if ino == request.ino]
            if own:
                found = sorted(row for row in rows if row[0] > own[0])[: request.following]
                return parent, [(name, self.attrs[ino]) for _, name, ino in found]
        return 0, []

    def _drop_object(self, attr: Attr) -> None:
        if attr.file_id:
            del self.named[attr.file_id]
            self.garbage.add(attr.file_id)

    def _name(self, ino: int, file_id: str, size: int, mtime_ns: int, in_place: bool) -> Attr:
        attr = self._inode(ino)
        if file_id != attr.file_id:
            self._drop_object(attr)
            if file_id:
                self.named[file_id] = ino
        return self._update(
            ino,
            file_id=file_id,
            size=size,
            mtime_ns=mtime_ns,
            ctime_ns=mtime_ns,
            version=attr.version + 1,
            in_place=in_place,
        )

    def _store_content(self, request: names.StoreContent) -> Attr:
        assert len(request.data) <= names.SMALL_CONTENT_MAX
        self._check_base(request)
        file_id = self.upload(request.data) if request.data else ""
        return self._name(request.ino, file_id, len(request.data), request.mtime_ns, False)

    def _check_base(self, request: names.StoreContent | names.NameObject) -> None:
        if request.based_on not in (names.ANY_VERSION, self._inode(request.ino).version):
            raise StatusError(names.CONTENT_CHANGED)

    def _new_object(self, request: names.NewObject) -> names.ObjectMade:
        file_id = self.upload(b"")
        self.pending.add(file_id)
        return names.ObjectMade(file_id, self.view)

    def _name_object(self, request: names.NameObject) -> Attr:
        if request.file_id not in self.pending:
            raise StatusError(errno.ESTALE)
        self._check_base(request)
        assert len(self.objects[request.file_id]) == request.size
        self.pending.discard(request.file_id)
        return self._name(request.ino, request.file_id, request.size, request.mtime_ns, True)

    def _make_writable(self, request: names.MakeWritable) -> Attr:
        attr = self._inode(request.ino)
        if attr.in_place:
            return attr
        file_id = self.upload(bytes(self.objects[attr.file_id]))
        return self._name(request.ino, file_id, attr.size, attr.mtime_ns, True)

    def _commit_write(self, request: names.CommitWrite) -> Attr:
        if self._inode(request.ino).file_id != request.file_id:
            raise StatusError(errno.ESTALE)
        size = len(self.objects[request.file_id])
        return self._name(request.ino, request.file_id, size, request.mtime_ns, True)

    def _truncate(self, request: names.Truncate) -> Attr:
        attr = self._inode(request.ino)
        content = bytes(self.objects[attr.file_id]) if attr.file_id else b""
        content = content[: request.size] + bytes(max(0, request.size - len(content)))
        file_id = self.upload(content)
        return self._name(request.ino, file_id, request.size, request.mtime_ns, True)


def _check_inode(found: int, wanted: int) -> None:
    if wanted not in (names.ANY_INODE, found):
        raise StatusError(errno.ESTALE)


def _attr(ino: int, mode: int, uid: int, gid: int, now_ns: int) -> Attr:
    return Attr(ino, mode, 1, uid, gid, 0, 0, now_ns, now_ns, now_ns, version=0)
