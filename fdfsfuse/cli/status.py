"""``fdfs status``."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from fdfsfuse.cli.options import cluster_options, json_option, run_with, settings_of
from fdfsfuse.cli.output import print_json, size_text

if TYPE_CHECKING:
    from rich.console import Console

    from fdfsfuse.cli.cluster_state import Volume
    from fdfsfuse.client.client import Client
    from fdfsfuse.proto.tracker import StorageStat

_COLOURS = {"ok": "green", "degraded": "yellow", "down": "red"}


@click.command()
@click.argument("volumes", metavar="[VOLUME...]", nargs=-1)
@json_option
@cluster_options
def status(
    volumes: tuple[str, ...],
    as_json: bool,
    trackers: tuple[str, ...],
    config: str | None,
    timeout_s: float | None,
) -> None:
    """Show volumes and servers: states and why, space, heartbeats, who keeps the names.

    With --json prints an object with the key volumes: a list of objects with name, state (ok,
    degraded, down), why, total_mb, free_mb, reserved_mb, names (view, primary, members, volume_id,
    problem) and storages (id, address, state, why, version, total_mb, free_mb, heartbeat_age_s,
    joined, started, names_role).

    \b
    Example:
      fdfs status --tracker 10.0.0.1
    """

    settings = settings_of(trackers, config, timeout_s)

    async def use(client: Client) -> list[Volume]:
        from fdfsfuse.cli.cluster_state import look

        return await look(client, settings.timeout_s)

    found = run_with(settings, use)
    if volumes:
        found = _select(found, volumes)
    if as_json:
        print_json({"volumes": [volume_data(volume) for volume in found]})
    else:
        _print(found)


def _select(found: list[Volume], names: tuple[str, ...]) -> list[Volume]:
    from fdfsfuse.cli.failure import NotFound

    known = {volume.stat.group: volume for volume in found}
    for name in names:
        if name not in known:
            raise NotFound(f"there is no volume {name}")
    return [known[name] for name in names]


def volume_data(volume: Volume) -> dict[str, Any]:
    """What --json shows of a volume."""
    from fdfsfuse.cli.cluster_state import state_of

    state, why = state_of(volume)
    view = volume.view
    return {
        "name": volume.stat.group,
        "state": state,
        "why": why,
        "total_mb": volume.stat.total_mb,
        "free_mb": volume.stat.free_mb,
        "reserved_mb": volume.stat.reserved_mb,
        "names": {
            "view": view.number if view else None,
            "primary": view.primary if view else None,
            "members": view.members if view else [],
            "volume_id": view.volume_id if view else None,
            "problem": volume.view_problem or None,
        },
        "storages": [_storage_data(volume, storage) for storage in volume.storages],
    }


def _storage_data(volume: Volume, storage: StorageStat) -> dict[str, Any]:
    from fdfsfuse.cli.cluster_state import why

    beat = storage.statistics.last_heart_beat_time
    return {
        "id": storage.storage_id,
        "address": f"{storage.ip}:{storage.storage_port}",
        "state": storage.status.name,
        "why": why(storage),
        "version": storage.version,
        "total_mb": storage.total_mb,
        "free_mb": storage.free_mb,
        "heartbeat_age_s": max(0, int(time.time()) - beat) if beat else None,
        "joined": storage.join_time,
        "started": storage.up_time or None,
        "names_role": _role(volume, storage) or None,
    }


def _role(volume: Volume, storage: StorageStat) -> str:
    if volume.view is None or storage.storage_id not in volume.view.members:
        return ""
    return "primary" if storage.storage_id == volume.view.primary else "member"


def _print(volumes: list[Volume]) -> None:
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    if not volumes:
        console.print("The tracker knows no volume yet: no storage has joined it.")
    for number, volume in enumerate(volumes):
        if number:
            console.print()
        _print_volume(console, volume)


def _print_volume(console: Console, volume: Volume) -> None:
    from rich.markup import escape

    data = volume_data(volume)
    colour = _COLOURS[data["state"]]
    console.print(
        f"[bold]{data['name']}[/bold]  [{colour}]{data['state']}[/{colour}]: {escape(data['why'])}"
    )
    console.print(
        f"  space   {_mb(data['free_mb'])} free of {_mb(data['total_mb'])}, "
        f"{_mb(data['reserved_mb'])} of it reserved"
    )
    names = data["names"]
    if names["problem"]:
        console.print(f"  names   {escape(names['problem'])}")
    else:
        console.print(
            f"  names   kept by {names['primary']} (view {names['view']}, "
            f"members: {', '.join(names['members'])})"
        )
    for storage in data["storages"]:
        _print_storage(console, storage)


def _print_storage(console: Console, data: dict[str, Any]) -> None:
    from rich.markup import escape

    colour = "green" if data["state"] == "ACTIVE" else "red"
    role = f", names {data['names_role']}" if data["names_role"] else ""
    age = data["heartbeat_age_s"]
    beat = "no heartbeat yet" if age is None else f"last heartbeat {age} s ago"
    console.print(
        f"  {data['address']:21} [{colour}]{data['state']:9}[/{colour}] "
        f"{escape(data['why'])}{role}; {_mb(data['free_mb'])} free, {beat}, "
        f"version {escape(data['version'] or 'unknown')}"
    )


def _mb(count: int) -> str:
    return size_text(count << 20)
