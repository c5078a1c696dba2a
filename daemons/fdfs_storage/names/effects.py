"""What a change does to object files, once its record is in the log.

On the way of a request this happens between the sync of the log and the commit of the state, or
for new objects perhaps during that sync (`fdfs_storage.names.engine`); a crash in between is made
good at the next start, when the record is replayed. Therefore `replay` does each step only where it
is still missing, and never touches the content of an appender that exists: it may have been written
to since.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from fdfs_storage.names.objects import Objects
from fdfsfuse.proto import names_record
from fdfsfuse.proto.names_record import Change

WORK: Final = frozenset(
    (
        names_record.PutContent,
        names_record.MakeFile,
        names_record.PutXattr,
        names_record.MakePending,
    )
)
"""Changes with object work; most have none."""
_MAKING: Final = (names_record.PutContent, names_record.MakeFile)
"""Those that may bring the content of a new object, in ``data``."""


def contents(changes: Iterable[Change]) -> list[tuple[str, bytes]]:
    """(file id, content) of the new objects that `perform` will make; to be announced before."""
    ops = [change.op for change in changes]
    return [
        (op.file_id, op.data)
        for op in ops
        if isinstance(op, _MAKING) and op.file_id and op.data is not None
    ]


def perform(objects: Objects, change: Change) -> str:
    """Do the object work of *change*.

    Returns:
        The file id of an object that was made without being announced, an empty one; else ''.

    Raises:
        OSError, StatusError: it could not be done; what was made is left for the caller to undo.
    """
    op = change.op
    if isinstance(op, _MAKING):
        if op.file_id:
            if op.data is not None:
                objects.make(op.file_id, op.data)
            if op.metadata:
                objects.put_planned(op.file_id)
    elif isinstance(op, names_record.PutXattr):
        objects.put_planned(op.file_id)
    elif isinstance(op, names_record.MakePending):
        objects.create_empty(op.file_id)
        return op.file_id
    return ""


def replay(objects: Objects, change: Change) -> None:
    """Do the part of the object work of *change* that a crash may have kept from the disk."""
    op = change.op
    if isinstance(op, _MAKING):
        if op.file_id:
            if op.data is not None:
                make_whole(objects, op.file_id, op.data)
            if op.metadata:
                objects.put_metadata(op.file_id, op.metadata)
    elif isinstance(op, names_record.PutXattr):
        if op.metadata is not None and objects.exists(op.file_id):
            objects.put_metadata(op.file_id, op.metadata)
    elif isinstance(op, names_record.MakePending):
        if not objects.exists(op.file_id):
            objects.create_empty(op.file_id)
    elif isinstance(op, names_record.Forget):
        for file_id in op.file_ids:
            objects.delete(file_id)
    elif isinstance(op, names_record.ObjectDeleted):
        objects.delete(op.file_id)


def make_whole(objects: Objects, file_id: str, data: bytes) -> bool:
    """Write the object unless it has exactly this content; True when it was written."""
    if objects.holds(file_id, data):
        return False
    objects.write_again(file_id, data)
    return True
