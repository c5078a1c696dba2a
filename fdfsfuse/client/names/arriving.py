"""What arrives on the connection of a names session: answers to its calls, and pushes."""

from __future__ import annotations

import errno
from collections.abc import Callable

from fdfsfuse.client.names.lease import Lease, boottime
from fdfsfuse.client.names.opening import SessionEnded
from fdfsfuse.client.names.pending import Call, PendingCalls
from fdfsfuse.errors import ConnectionBroken, ProtocolError, StatusError
from fdfsfuse.proto import names, structs


class Arriving:
    """Gives the calls of a session their answers, which keep its lease.

    Attributes:
        lease_s: the session's lease in seconds.
        last_received: boottime of the last answer.
        any: whether there was one since this was set to False.
    """

    def __init__(
        self,
        calls: PendingCalls,
        lease: Lease,
        on_lease_lost: Callable[[], None] | None,
        on_push: Callable[[names.Push], None],
        call_again: Callable[[Call], None],
    ) -> None:
        self.lease_s = 10.0
        self.last_received = 0.0
        self.any = False
        self._calls = calls
        self._lease = lease
        self._on_lease_lost = on_lease_lost
        self._on_push = on_push
        self._call_again = call_again

    def take(self, command: int, status: int, frame: bytes | bytearray) -> None:
        """A frame has arrived.

        Raises:
            ConnectionBroken, ProtocolError: the connection cannot be used on.
            SessionEnded: nor can the session.
        """
        if len(frame) < 8:
            raise ProtocolError("the names primary sent a frame without an id")
        if command == names.ANSWER:
            number = int.from_bytes(frame[:8], "big")
            self._answer(number, status, memoryview(frame)[8:])
        elif command == names.MADE:
            self._made(frame)
        elif command == names.PUSH:
            push = names.decode_push(memoryview(frame)[8:])
            self._on_push(push)
            if isinstance(push, names.NotPrimaryAnyMore):
                raise ConnectionBroken("it is not the names primary any more")
        else:
            raise ProtocolError(f"the names primary sent command {command} in a session")

    def _answer(self, number: int, status: int, body: memoryview) -> None:
        if status and self._calls.has(number):
            # Nothing has become of the call: it is made again elsewhere.
            if status == names.NOT_PRIMARY:
                raise ConnectionBroken("it is not the names primary any more")
            if status == names.SESSION_ENDED:
                raise SessionEnded("the session ended")
        call = self._calls.take(number)
        if call is None:
            return  # a call that was cancelled or came too late
        self._note_answer(call)
        if not call.wanted:
            return
        if call.former is not None:
            self._learn_outcome(call, status, body)
        elif status:
            call.fail(StatusError(status))
        else:
            _finish(call, body)

    def _made(self, frame: bytes | bytearray) -> None:
        """Changes that were posted have been made."""
        if len(frame) % names.ID_RANGE.size:
            raise ProtocolError(f"the names primary sent {len(frame)} bytes of ranges")
        for first, last in names.ID_RANGE.iter_unpack(frame):
            calls = self._calls.between(first, last)
            if calls:
                self._note_answer(calls[-1][1])
            for number, call in calls:
                on_end = call.on_end
                if on_end is None:
                    raise ProtocolError(f"a {call.kind.__name__} was made, but has no answer")
                self._calls.take(number)
                on_end(None)

    def _learn_outcome(self, call: Call, status: int, body: memoryview) -> None:
        """It was answered what became of a call in the session before."""
        if status:
            why = "the names session ended, and nobody knows whether the change was made"
            call.fail(StatusError(errno.EIO, why))
            return
        try:
            found = structs.decode(names.Outcome, body)
        except ProtocolError as exc:
            call.fail(exc)
            return
        call.former = None
        if found.answer is None:
            call.sent_at = 0.0
            self._call_again(call)
        else:
            _finish(call, found.answer)

    # --- the lease -------------------------------------------------------------------------------

    def _note_answer(self, call: Call) -> None:
        self.any = True
        self.last_received = now = boottime()
        self.renew_lease(call.sent_at, now)

    def renew_lease(self, sent_at: float, now: float) -> None:
        """What was sent at the boottime *sent_at* has been answered."""
        if now > self._lease.until:
            # The storage may have done without us for a while.
            self._lose_lease()
        self._lease.renew(sent_at, self.lease_s)

    def end_lease(self) -> None:
        """There is no session any more."""
        self._lose_lease()
        self._lease.end()

    def _lose_lease(self) -> None:
        if self._lease.until and self._on_lease_lost is not None:
            self._on_lease_lost()


def _finish(call: Call, body: bytes | memoryview) -> None:
    try:
        answer = names.decode_answer(call.kind, body)
    except ProtocolError as exc:
        call.fail(exc)
    else:
        call.finish(answer)
