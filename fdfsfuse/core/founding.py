"""Which storage founds the tree of a group: decided once for a group, by its trackers together.

Two storages that start at the same moment may each find a tracker that does not know the other.
So before a tracker answers 87 with "nothing to copy", the trackers agree on one storage, by
single-decree Paxos (Lamport, "Paxos Made Simple", 2001): every tracker is an acceptor, the one that
was asked proposes, and a majority of the listed trackers has to accept. What was chosen stays
chosen, until an administrator removes that storage. Stock trackers have no vote.

Pure; an acceptor's state must be on disk before its vote is sent.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fdfsfuse.errors import ProtocolError, UsageError
from fdfsfuse.proto.address import MAX_ADDRESS_TEXT
from fdfsfuse.proto.cluster_status import Ballot, Founder, FounderBallot, FounderVote
from fdfsfuse.proto.fileid import check_group_name
from fdfsfuse.proto.header import STORAGE_ID_SIZE
from fdfsfuse.proto.tracker import MAX_SERVERS_PER_GROUP

FIRST = Ballot(0, "")
_BALLOT_END = 1 << 48
_TRACKER_MAX = 2 * MAX_ADDRESS_TEXT


@dataclass(slots=True)
class Acceptor:
    """One tracker's part in the decision about one group."""

    promised: Ballot = FIRST
    accepted: Ballot | None = None
    value: Founder | None = None

    def vote(self, request: FounderBallot) -> FounderVote:
        """Promise or accept, or refuse because a higher ballot was promised."""
        if self.value is not None and self.value.storage_id in request.removed:
            self.forget(self.value.storage_id)
        granted = request.ballot >= self.promised
        if granted:
            self.promised = request.ballot
            if request.value is not None:
                self.accepted, self.value = request.ballot, request.value
        return FounderVote(granted, self.promised, self.accepted, self.value)

    def forget(self, storage_id: str) -> None:
        """An administrator removed a storage: if it was the founder, there is none now."""
        if self.value is not None and self.value.storage_id == storage_id:
            self.accepted = self.value = None


def check_ballot(request: FounderBallot) -> None:
    """Refuse what no tracker of ours sends, and what would fill the disk or overflow a number.

    Raises:
        ProtocolError.
    """
    try:
        check_group_name(request.group)
    except UsageError as exc:
        raise ProtocolError(str(exc)) from exc
    ids = [*request.removed, *((request.value.storage_id,) if request.value is not None else ())]
    if (
        not 0 < request.ballot.number < _BALLOT_END
        or len(request.ballot.tracker) > _TRACKER_MAX
        or len(request.removed) > MAX_SERVERS_PER_GROUP
        or any(not storage_id or len(storage_id) >= STORAGE_ID_SIZE for storage_id in ids)
    ):
        raise ProtocolError("a ballot that makes no sense")


def majority(voters: int) -> int:
    """How many of *voters* have to agree."""
    return voters // 2 + 1


def next_ballot(known: Iterable[Ballot], tracker: str) -> Ballot:
    """A ballot of *tracker* that is higher than all *known* ones."""
    return Ballot(max((ballot.number for ballot in known), default=0) + 1, tracker)


def value_to_propose(promises: Sequence[FounderVote], own: Founder) -> Founder:
    """What a proposer must propose after a majority promised: what may be chosen already."""
    voted = [vote for vote in promises if vote.accepted is not None and vote.value is not None]
    if not voted:
        return own
    value = max(voted, key=lambda vote: vote.accepted or FIRST).value
    assert value is not None
    return value
