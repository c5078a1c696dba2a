"""A plan on its way: what is the same whoever carries out its steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic

from fdfsfuse.client.plans.steps import Plan, Request, Step, T
from fdfsfuse.errors import FdfsError, NoVolumeError, StatusError


class Running(Generic[T]):
    """The plan of one operation.

    `resume` it to get a step, then `resume` it with the result of the step or let it `fail` with
    the error, and so on until that gives None and ``result`` is there. `close` it in the end,
    whatever happens.
    """

    __slots__ = ("_plan", "result", "what")
    result: T

    def __init__(self, what: str, plan: Plan[T]) -> None:
        self.what = what
        self._plan = plan

    def resume(self, value: Any = None) -> Step | None:
        """Begin, or go on with the result of a step; the next step, or None at the end.

        Raises:
            StatusError: that of a server, with the name of the operation. Others as they are.
        """
        return self._go_on(self._plan.send, value)

    def fail(self, step: Step, error: FdfsError) -> Step | None:
        """Go on after *step* has ended with *error*; as `resume`. May be the same step again."""
        if isinstance(step, Request) and step.may_repeat(error):
            step.fresh = True
            return step
        return self._go_on(self._plan.throw, error)

    def _go_on(self, plan: Callable[[Any], Step], value: Any) -> Step | None:
        try:
            return plan(value)
        except StopIteration as stop:
            self.result = stop.value
            return None
        except NoVolumeError:
            raise  # is a whole sentence
        except StatusError as exc:
            raise StatusError(exc.errno or 0, f"{self.what}: {exc.what}") from exc

    def close(self) -> None:
        """End the plan where it is, and what it has open."""
        self._plan.close()
