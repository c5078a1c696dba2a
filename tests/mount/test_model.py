"""Random operations give the same results, errors and attributes on the mount as locally."""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from tests.common.model import Runner
from tests.common.mount import Mount
from tests.common.trees import assert_same_tree

OPERATIONS = 1500


@pytest.fixture(autouse=True)
def usual_umask() -> Iterator[None]:
    old = os.umask(0o022)
    yield
    os.umask(old)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_random_operations(seed: int, local: Path, volume: Path, mounted: Mount) -> None:
    runner = Runner(local, volume, seed)
    try:
        runner.run(OPERATIONS)
    finally:
        _close_all(runner)
    assert_same_tree(local, volume)
    mounted.remount()
    assert_same_tree(local, volume)
    # The generator reaches what it was written for: each operation succeeds and fails at times.
    kinds = {key.split(":")[0] for key in runner.results}
    done = {key.split(":")[0] for key in runner.results if key.endswith("done")}
    assert len(kinds) > 20
    assert kinds - done <= {"mkfifo", "chown", "removexattr", "access", "readlink", "rmdir"}


def test_new_random_operations(local: Path, volume: Path, mounted: Mount, long_run: bool) -> None:
    """A seed that has failed; with ``--long`` others at each run, which are in the error."""
    chance = random.SystemRandom()
    for seed in [chance.randrange(10**6) for _ in range(20)] if long_run else [174406]:
        left, right = local / str(seed), volume / str(seed)
        left.mkdir()
        right.mkdir()
        runner = Runner(left, right, seed)
        try:
            runner.run(OPERATIONS)
        finally:
            _close_all(runner)
        assert_same_tree(left, right)
    mounted.remount()
    assert_same_tree(local, volume)


def test_operations_that_hypothesis_chooses(local: Path, volume: Path, long_run: bool) -> None:
    """As above, but what fails is made as short as it can be."""
    numbers = itertools.count()

    class Machine(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            name = str(next(numbers))
            self.left, self.right = local / name, volume / name
            self.left.mkdir()
            self.right.mkdir()
            self.runner = Runner(self.left, self.right, 0)

        @rule(number=st.integers(0, 63), draw=st.randoms(use_true_random=False))
        def operation(self, number: int, draw: random.Random) -> None:
            self.runner.step(number, draw)

        def teardown(self) -> None:
            _close_all(self.runner)
            assert_same_tree(self.left, self.right)

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=200 if long_run else 12,
            stateful_step_count=100 if long_run else 40,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def _close_all(runner: Runner) -> None:
    """Close what a failed run left open, so that the mount can be unmounted."""
    for fds in runner.handles:
        for fd in fds:
            os.close(fd)
    runner.handles.clear()
