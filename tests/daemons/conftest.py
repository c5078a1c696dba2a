"""Fixtures of the tests that need a storage which keeps names."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fdfsfuse.client.names import NamesSession
from tests.common.names_server import NamesServer, names_server


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[NamesServer]:
    """A storage with an empty tree, in this process."""
    async with names_server(tmp_path) as running:
        yield running


@pytest.fixture
async def session(server: NamesServer) -> AsyncIterator[NamesSession]:
    """A session with it."""
    async with server.session() as opened:
        yield opened
