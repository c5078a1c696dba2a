"""What a change touches of what sessions may hold: attributes, content and names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from fdfs_storage.names.content import ById
from fdfsfuse.proto import names, names_record


class Touched(NamedTuple):
    """Inodes and names, as in `fdfsfuse.proto.names.Recall`; ``attrs`` has those of ``content``."""

    attrs: tuple[int, ...] = ()
    content: tuple[int, ...] = ()
    names: tuple[tuple[int, bytes], ...] = ()


def touched(op: Any, outcome: Any) -> Touched | None:
    """What *op*, which was answered *outcome*, has changed; None for what mounts do not see."""
    find = _TOUCHED.get(type(op))
    return find(op, outcome) if find is not None else None


def _entry(
    op: names.Create | names.Remove | names.Link | names_record.MakeFile, outcome: names.Attr
) -> Touched:
    return Touched((op.parent, outcome.ino), (), ((op.parent, op.name),))


def _renamed(outcome: names.Renamed) -> tuple[int, ...]:
    replaced = outcome.replaced
    return (outcome.moved.ino,) if replaced is None else (outcome.moved.ino, replaced.ino)


def _rename(op: names.Rename, outcome: names.Renamed) -> Touched:
    parents = (op.parent,) if op.parent == op.new_parent else (op.parent, op.new_parent)
    return Touched(
        parents + _renamed(outcome), (), ((op.parent, op.name), (op.new_parent, op.new_name))
    )


def _adopt(op: names_record.AdoptObject, outcome: names.Renamed) -> Touched:
    return Touched((op.parent, *_renamed(outcome)), (), ((op.parent, op.name),))


def _put_xattr(op: names_record.PutXattr, outcome: names.Done) -> Touched | None:
    return Touched((op.ino,)) if op.ino else None


def _put_content(op: names_record.PutContent, outcome: names.Attr) -> Touched:
    return Touched((op.ino,), () if op.same else (op.ino,))


def _by_id(op: Any, outcome: ById) -> Touched | None:
    if not outcome.ino:
        return None
    parents = dict.fromkeys(parent for parent, _ in outcome.links)
    return Touched((*parents, outcome.ino), (outcome.ino,), tuple(outcome.links))


_TOUCHED: dict[type, Callable[[Any, Any], Touched | None]] = {
    names.Create: _entry,
    names.Remove: _entry,
    names.Link: _entry,
    names.Rename: _rename,
    names.SetAttr: lambda op, outcome: Touched((op.ino,)),
    names_record.MakeFile: _entry,
    names_record.AdoptObject: _adopt,
    names_record.PutXattr: _put_xattr,
    names_record.PutContent: _put_content,
    names_record.Resize: lambda op, outcome: Touched((op.ino,), (op.ino,)),
    names_record.ObjectDeleted: _by_id,
    names_record.ObjectChanged: _by_id,
    names_record.ObjectRenamed: _by_id,
}
