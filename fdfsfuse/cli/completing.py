"""Tab completion of what the cluster knows: its groups and their servers.

A shell waits for this, so the trackers get a short time, and any error means no proposals.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

import click
from click.shell_completion import CompletionItem

if TYPE_CHECKING:
    from fdfsfuse.client.client import Client

T = TypeVar("T")
_TIMEOUT_S = 2.0


def complete_group(
    context: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Names of groups."""

    async def use(client: Client) -> list[CompletionItem]:
        return [CompletionItem(stat.group) for stat in await client.tracker.list_groups()]

    return _ask(context, use, incomplete)


def complete_server(
    context: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Ids of the servers of the group that stands before, with their states."""
    group = context.params.get("group")

    async def use(client: Client) -> list[CompletionItem]:
        if not isinstance(group, str):
            return []
        return [
            CompletionItem(stat.storage_id, help=stat.status.name)
            for stat in await client.tracker.list_storages(group)
        ]

    return _ask(context, use, incomplete)


def _ask(
    context: click.Context,
    use: Callable[[Client], Awaitable[list[CompletionItem]]],
    incomplete: str,
) -> list[CompletionItem]:
    import trio

    from fdfsfuse.cli.options import ChosenCluster

    async def briefly(client: Client) -> list[CompletionItem]:
        with trio.move_on_after(_TIMEOUT_S):
            return await use(client)
        return []

    parameters = context.params
    try:
        found = ChosenCluster(
            tuple(parameters.get("trackers") or ()), parameters.get("config"), _TIMEOUT_S
        ).run(briefly)
    except Exception:  # a traceback would end up in the command line that is being typed
        return []
    return [item for item in found if str(item.value).startswith(incomplete)]
