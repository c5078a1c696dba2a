"""Who may change a volume's tree, and when a change counts: views and the log, without I/O.

The shape is that of PacificA (Lin et al. 2008): a *view* names a primary and its members. The
primary gives each change the next index of the log; a change is *committed* when every member of
the view has it. Only members of a view may make the next one, and view numbers only rise, so
that of two servers that take themselves for the primary the older one finds nobody who follows.

`Replica` is the machine of one server. It is fed with events and answers with a list of things
to do, in that order; the shell around it owns files, connections and clocks:

========================  =======================================================================
event                     what happens
========================  =======================================================================
``propose(payloads)``     (primary) positions are given; `Append` them, `Send` them to the others
``has(member, index)``    member (or this server: after its sync) has all records up to index;
                          `Commit` when that completes some
``receive(...)``          (member) records of the primary: `Append`, then `Acknowledge`
``retract(index)``        (primary alone in its view) the records behind index could not be kept
``install(view)``         a newer view; commit starts anew from what all of its members have
========================  =======================================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from fdfsfuse.errors import FdfsError, UsageError
from fdfsfuse.proto.names_record import Record


class StaleView(FdfsError):
    """The event belongs to an older view than the one this server knows."""


class NotPrimary(FdfsError):
    """Only the primary of the view may do this, and this server is not."""


class LogGap(FdfsError):
    """Records do not join on to the log; the sender has to start at an earlier one."""


class Position(msgspec.Struct, frozen=True, gc=False):
    """A place in the log. Two logs with the same (view, index) are equal up to there."""

    view: int
    index: int


@dataclass(frozen=True, slots=True)
class View:
    """Who keeps the tree: ``number`` from 1, ``primary`` is one of ``members`` (storage ids)."""

    number: int
    primary: str
    members: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.number < 1:
            raise UsageError(f"views count from 1, not {self.number}")
        if self.primary not in self.members or len(set(self.members)) != len(self.members):
            raise UsageError(f"the primary must be one of different members: {self}")


@dataclass(frozen=True, slots=True)
class Append:
    """Write the records to the log and sync it, then tell the machine (`Replica.has`)."""

    records: tuple[Record, ...]


@dataclass(frozen=True, slots=True)
class Send:
    """Send the records to ``member``; they follow on ``after``."""

    member: str
    after: Position
    records: tuple[Record, ...]


@dataclass(frozen=True, slots=True)
class Acknowledge:
    """Tell ``primary`` that this server has everything up to ``index``, once that is synced."""

    primary: str
    index: int


@dataclass(frozen=True, slots=True)
class Commit:
    """Everything up to ``index`` is committed: apply it, answer it."""

    index: int


Output = Append | Send | Acknowledge | Commit


class Replica:
    """The log of one server as far as decisions go.

    Attributes:
        view: the newest view that is known.
        last: position of the last record of the own log, synced or not.
        commit: index of the last committed record; never falls.

    Args:
        own_id: id of this server.
        last: end of the log found on disk, all of it synced.
        commit: what is known to be committed: the index that the state on disk has applied.
    """

    def __init__(self, own_id: str, view: View, last: Position, commit: int) -> None:
        if last.view > view.number:
            raise StaleView(f"the log was written in view {last.view}, after {view.number}")
        if commit > last.index:
            raise UsageError(f"record {commit} is applied, but the log ends at {last.index}")
        self.own_id = own_id
        self.view = view
        self.last = last
        self.commit = commit
        self._has: dict[str, int] = {own_id: last.index}

    @property
    def is_primary(self) -> bool:
        """True when this server orders the changes."""
        return self.view.primary == self.own_id

    def start(self) -> list[Output]:
        """To be called once after the log was read: a lone member has committed what it has."""
        return self._advance()

    def propose(self, payloads: Sequence[bytes]) -> list[Output]:
        """Give the next positions to *payloads*. Raises NotPrimary."""
        if not self.is_primary:
            raise NotPrimary(f"{self.view.primary} is the primary of view {self.view.number}")
        after, number = self.last, self.view.number
        # Lists where generators would do, here and below: a batch is often a single change.
        records = tuple(
            [
                Record(number, index, payload)
                for index, payload in enumerate(payloads, after.index + 1)
            ]
        )
        if not records:
            return []
        self.last = Position(number, records[-1].index)
        others = [m for m in self.view.members if m != self.own_id]
        return [Append(records), *[Send(m, after, records) for m in others]]

    def has(self, member: str, index: int, *, view: int | None = None) -> list[Output]:
        """*member* has synced everything up to *index*; *view*: the view it says that in.

        Raises:
            StaleView: it speaks of an older view.
        """
        if view is not None and view < self.view.number:
            raise StaleView(f"{member} is in view {view}, not {self.view.number}")
        if member not in self.view.members:
            return []
        if index > self.last.index:
            raise UsageError(f"{member} cannot have record {index}, the last is {self.last.index}")
        self._has[member] = max(index, self._has.get(member, 0))
        return self._advance() if self.is_primary else []

    def receive(
        self, view: int, after: Position, records: Sequence[Record], committed: int
    ) -> list[Output]:
        """Records that the primary of *view* sent, following on *after*; *committed*: its index.

        Raises:
            StaleView: the sender acts in an older view than this server knows.
            LogGap: *after* is not the end of this log; nothing was taken.
        """
        if view < self.view.number:
            raise StaleView(f"records of view {view} came in view {self.view.number}")
        if view > self.view.number:
            raise LogGap(f"view {view} is not known here yet")
        if self.is_primary:
            raise NotPrimary("a primary takes no records")
        if after != self.last:
            raise LogGap(f"the log ends at {self.last}, the records follow on {after}")
        for expected, record in enumerate(records, after.index + 1):
            if record.index != expected or record.view > view:
                raise LogGap(f"record {record.view}/{record.index} in place of {expected}")
        outputs: list[Output] = []
        if records:
            self.last = Position(records[-1].view, records[-1].index)
            outputs.append(Append(tuple(records)))
            outputs.append(Acknowledge(self.view.primary, self.last.index))
        return outputs + self._commit_to(min(committed, self.last.index))

    def retract(self, last: Position) -> None:
        """Forget the uncommitted records behind *last*: writing them failed, they were cut off.

        Only for a primary that is alone: otherwise another member may have them.
        """
        if self.view.members != (self.own_id,):
            raise UsageError("records that were sent to others cannot be taken back")
        if last.index < self.commit or last.index > self.last.index:
            raise UsageError(f"cannot go back to {last} from {self.last}")
        self.last = last
        self._has = {self.own_id: min(last.index, self._has[self.own_id])}

    def install(self, view: View) -> list[Output]:
        """Act in a newer view from now on; it must be on disk before. Raises StaleView.

        Members of the new view report what they have by `has`; a server that is added must have
        caught up before.
        """
        if view.number <= self.view.number:
            raise StaleView(f"view {view.number} is not newer than {self.view.number}")
        self.view = view
        self._has = {self.own_id: self._has[self.own_id]}
        return self._advance() if self.is_primary else []

    def _advance(self) -> list[Output]:
        """Commit what every member has."""
        return self._commit_to(min([self._has.get(m, 0) for m in self.view.members]))

    def _commit_to(self, index: int) -> list[Output]:
        if index <= self.commit:
            return []
        self.commit = index
        return [Commit(index)]
