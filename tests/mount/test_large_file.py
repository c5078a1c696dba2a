"""Large files stream: memory does not grow with their size."""

from __future__ import annotations

import os

import pytest

from benchmarks.memory import measure
from tests.common.cluster import Cluster
from tests.common.mount import Mount

SIZE_MIB = 256
MOVED_MAX_MIB = 100


def test_memory_of_a_large_file(mounted: Mount, cluster: Cluster, long_run: bool) -> None:
    """Writing and reading it moves the memory of mount and storage by less than 100 MiB."""
    if not os.access(f"/proc/{mounted.pid}/clear_refs", os.W_OK):
        pytest.skip("the kernel does not let us reset the peak of resident memory")
    rows = measure(mounted, cluster.storage("group1"), 4096 if long_run else SIZE_MIB)
    assert {row.phase for row in rows} == {"write", "read"}
    for row in rows:
        assert row.moved_mib < MOVED_MAX_MIB, row
