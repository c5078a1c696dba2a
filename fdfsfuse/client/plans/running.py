"""A plan on its way: what is the same whoever carries out its steps."""

from __future__ import annotations

from typing import Any, Generic

from fdfsfuse.client.plans.steps import Plan, Step, T
from fdfsfuse.errors import FdfsError, StatusError


class Running(Generic[T]):
    """The plan of one operation.

    `next_step` gives a step; then call `done` with its result or `failed` with its error, and so
    on until it gives None and ``result`` is there. `close` it in the end, whatever happens.
    """

    __slots__ = ("_error", "_plan", "_value", "result", "what")
    result: T

    def __init__(self, what: str, plan: Plan[T]) -> None:
        self.what = what
        self._plan = plan
        self._value: Any = None
        self._error: FdfsError | None = None

    def next_step(self) -> Step | None:
        """The next step, or None at the end.

        Raises:
            StatusError: that of a server, with the name of the operation. Others as they are.
        """
        error = self._error
        try:
            if error is None:
                return self._plan.send(self._value)
            self._error = None
            return self._plan.throw(error)
        except StopIteration as stop:
            self.result = stop.value
            return None
        except StatusError as exc:
            raise StatusError(exc.errno or 0, f"{self.what}: {exc.what}") from exc

    def done(self, value: Any) -> None:
        """The step was carried out."""
        self._value = value

    def failed(self, error: FdfsError) -> None:
        """The step ended with *error*."""
        self._error = error

    def close(self) -> None:
        """End the plan where it is, and what it has open."""
        self._plan.close()
