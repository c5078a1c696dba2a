"""``fdfs admin``: take servers and groups out of a cluster, give groups a tree."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import click

from fdfsfuse.cli.completing import complete_group, complete_server
from fdfsfuse.cli.failure import EXIT_REFUSED, EXIT_UNREACHABLE
from fdfsfuse.cli.options import ChosenCluster, json_option, on_cluster
from fdfsfuse.cli.output import print_json
from fdfsfuse.proto import structs
from fdfsfuse.proto.cluster_status import FORGET_SERVER, FOUND_TREE, ForgetServer, FoundTree
from fdfsfuse.proto.tracker import GroupRequest, ServerRequest, TrackerCommand

if TYPE_CHECKING:
    from fdfsfuse.cli.cluster_state import ClusterState
    from fdfsfuse.cli.removal import Plan
    from fdfsfuse.client.client import Client
    from fdfsfuse.client.cluster_view import Outcome

_ALREADY = frozenset({2, 114})
"""What trackers answer when the server is unknown to them or removed already."""
_UNKNOWN = frozenset({2})

_dry_run = click.option(
    "--dry-run", "-n", is_flag=True, help="Only say what would happen and what would be lost."
)
_force = click.option(
    "--force", is_flag=True, help="Go on although something is lost for good by it."
)
_group = click.argument("group", metavar="GROUP", shell_complete=complete_group)


@click.group()
def admin() -> None:
    """Take servers and groups out of a cluster, and give groups a directory tree.

    Nothing here touches the files on a server's disks: it only makes the trackers, and by them all
    other servers and the mounts, do without that server. Every tracker is told; when one cannot be
    reached the command says so and exits with 4: repeat it when that tracker is back.

    \b
    Examples:
      fdfs admin remove group1 10.0.0.4 --dry-run
      fdfs admin remove group1 10.0.0.4
      fdfs admin forget group1
      fdfs admin remove-group group2 --force
      fdfs admin names init group1 10.0.0.4
    """


@admin.command()
@_group
@click.argument("server", metavar="SERVER", shell_complete=complete_server)
@_dry_run
@_force
@json_option
@on_cluster
def remove(
    group: str,
    server: str,
    dry_run: bool,
    force: bool,
    as_json: bool,
    cluster: ChosenCluster,
) -> int:
    """Remove a server that does not come back from its group.

    SERVER is its id as fdfs status shows it: its ip, or its number in storage_ids.conf. It must be
    stopped. The others stop waiting for it; what they owe it is forgotten. It is refused (exit
    code 5) when something would be lost for good, unless --force is given; --dry-run says what.

    A removed server can come back: with empty disks and an empty base_path it joins as a new one
    and is filled by the others.

    \b
    Examples:
      fdfs admin remove group1 10.0.0.4 --dry-run
      fdfs admin remove group1 10.0.0.4
    """

    def plan(found: ClusterState) -> Plan:
        from fdfsfuse.cli.removal import find_storage, find_volume, plan_server

        volume = find_volume(found, group)
        return plan_server(found, volume, find_storage(volume, server))

    async def act(found: ClusterState, timeout_s: float) -> Outcome:
        body = ServerRequest(group, server).encode()
        return await _tell(found, TrackerCommand.DELETE_STORAGE, body, _ALREADY, timeout_s)

    return _carry_out(
        f"remove {server} from {group}", plan, act, dry_run, force, as_json,
        cluster,
    )  # fmt: skip


@admin.command(name="remove-group")
@_group
@_dry_run
@_force
@json_option
@on_cluster
def remove_group(
    group: str,
    dry_run: bool,
    force: bool,
    as_json: bool,
    cluster: ChosenCluster,
) -> int:
    """Remove a group with all its servers; they must be stopped.

    FastDFS trackers keep removed servers in their lists and refuse to remove their group (status
    16) until they are restarted: repeat the command then.

    \b
    Example:
      fdfs admin remove-group group2 --force
    """

    def plan(found: ClusterState) -> Plan:
        from fdfsfuse.cli.removal import find_volume, plan_group

        return plan_group(find_volume(found, group))

    async def act(found: ClusterState, timeout_s: float) -> Outcome:
        from fdfsfuse.cli.removal import find_volume

        for storage in find_volume(found, group).storages:
            body = ServerRequest(group, storage.storage_id).encode()
            await _tell(found, TrackerCommand.DELETE_STORAGE, body, _ALREADY, timeout_s)
            forget = structs.encode(ForgetServer(group, storage.storage_id))
            await _tell(found, FORGET_SERVER, forget, _UNKNOWN, timeout_s)
        body = GroupRequest(group).encode()
        return await _tell(found, TrackerCommand.DELETE_GROUP, body, _UNKNOWN, timeout_s)

    return _carry_out(
        f"remove the group {group}", plan, act, dry_run, force, as_json,
        cluster,
    )  # fmt: skip


@admin.command()
@_group
@click.argument("servers", metavar="[SERVER...]", nargs=-1, shell_complete=complete_server)
@_dry_run
@json_option
@on_cluster
def forget(
    group: str,
    servers: tuple[str, ...],
    dry_run: bool,
    as_json: bool,
    cluster: ChosenCluster,
) -> int:
    """Drop removed servers from the lists.

    All removed servers of GROUP are dropped, or those that are named. FastDFS keeps them there, as
    DELETED or IP_CHANGED, until its trackers are restarted; its trackers do not know this command.

    \b
    Example:
      fdfs admin forget group1
    """

    def wanted(found: ClusterState) -> list[str]:
        from fdfsfuse.cli.removal import find_storage, find_volume
        from fdfsfuse.client.tracker import GONE

        volume = find_volume(found, group)
        if servers:
            return [find_storage(volume, server).storage_id for server in servers]
        return [s.storage_id for s in volume.storages if s.status in GONE]

    def plan(found: ClusterState) -> Plan:
        from fdfsfuse.cli.removal import Plan, find_storage, find_volume
        from fdfsfuse.client.tracker import GONE

        volume = find_volume(found, group)
        result = Plan()
        for server in wanted(found):
            storage = find_storage(volume, server)
            if storage.status not in GONE:
                result.obstacles.append(
                    f"{server} is {storage.status.name}, not removed: fdfs admin remove comes first"
                )
            result.effects.append(f"{server} is not listed any more")
        if not result.effects:
            result.effects.append(f"{group} has no removed servers")
        return result

    async def act(found: ClusterState, timeout_s: float) -> Outcome:
        from fdfsfuse.client.cluster_view import Outcome

        outcome = Outcome()
        for server in wanted(found):
            body = structs.encode(ForgetServer(group, server))
            outcome = await _tell(found, FORGET_SERVER, body, _UNKNOWN, timeout_s)
            if outcome.problems:
                break
        return outcome

    return _carry_out(
        f"forget removed servers of {group}", plan, act, dry_run, False, as_json,
        cluster,
    )  # fmt: skip


@admin.group()
def names() -> None:
    """The directory tree of a group.

    \b
    Example:
      fdfs admin names init group1 10.0.0.4
    """


@names.command()
@_group
@click.argument("server", metavar="SERVER", shell_complete=complete_server)
@_dry_run
@json_option
@on_cluster
def init(group: str, server: str, dry_run: bool, as_json: bool, cluster: ChosenCluster) -> int:
    """Give a group that was moved from C servers a directory tree.

    SERVER, one of our storages, founds it and keeps it from then on. The files of the group stay
    where they are, and can be given names: mv them out of M00 on a mount. Groups whose first
    storage was one of ours have a tree already, and so have all after this command.

    \b
    Example:
      fdfs admin names init group1 10.0.0.4
    """

    def plan(found: ClusterState) -> Plan:
        from fdfsfuse.cli.removal import find_storage, find_volume, plan_tree

        volume = find_volume(found, group)
        return plan_tree(found, volume, find_storage(volume, server))

    async def act(found: ClusterState, timeout_s: float) -> Outcome:
        from fdfsfuse.cli.removal import find_storage, find_volume, stock_storages
        from fdfsfuse.client.address import Address
        from fdfsfuse.client.cluster_view import tell_trackers

        volume = find_volume(found, group)
        storage = find_storage(volume, server)
        address = Address(storage.ip, storage.storage_port)
        body = structs.encode(FoundTree(group, stock_storages(volume)))
        return await tell_trackers([address], FOUND_TREE, body, timeout_s=timeout_s)

    return _carry_out(
        f"found the tree of {group} on {server}", plan, act, dry_run, False, as_json,
        cluster,
    )  # fmt: skip


async def _tell(
    cluster: ClusterState, command: int, body: bytes, good: frozenset[int], timeout_s: float
) -> Outcome:
    from fdfsfuse.client.cluster_view import tell_trackers

    addresses = [view.address for view in cluster.trackers]
    return await tell_trackers(addresses, command, body, good, timeout_s=timeout_s)


def _carry_out(
    what: str,
    make_plan: Callable[[ClusterState], Plan],
    act: Callable[[ClusterState, float], Awaitable[Outcome]],
    dry_run: bool,
    force: bool,
    as_json: bool,
    where: ChosenCluster,
) -> int:
    """Plan, and unless something speaks against it, act; prints what it found and did."""

    async def use(client: Client) -> int:
        from fdfsfuse.cli.cluster_state import look

        timeout_s = where.settings().timeout_s
        cluster = await look(client, min(timeout_s, 5.0))
        plan = make_plan(cluster)
        data: dict[str, Any] = {
            "action": what,
            "obstacles": plan.obstacles,
            "losses": plan.losses,
            "effects": plan.effects,
            "done": False,
        }
        refused = bool(plan.obstacles) or (bool(plan.losses) and not force)
        outcome = None
        if not dry_run and not refused:
            outcome = await act(cluster, timeout_s)
            data["done"] = not outcome.problems
            data["trackers"] = {
                **{str(address): "done" for address in outcome.done},
                **{str(address): text for address, text in outcome.problems.items()},
            }
        if as_json:
            print_json(data)
        else:
            _print(data, dry_run, force, outcome)
        if outcome is not None and outcome.problems:
            return EXIT_REFUSED if outcome.refused else EXIT_UNREACHABLE
        return EXIT_REFUSED if refused and (not dry_run or plan.obstacles) else 0

    return where.run(use)


def _print(data: dict[str, Any], dry_run: bool, force: bool, outcome: Outcome | None) -> None:
    for text in data["obstacles"]:
        click.echo(f"not possible: {text}")
    for text in data["losses"]:
        click.echo(f"lost: {text}")
    for text in data["effects"]:
        click.echo(f"then: {text}")
    if outcome is not None:
        for address, text in outcome.problems.items():
            click.echo(f"not done at {address}: {text}")
        if outcome.problems and not outcome.refused:
            click.echo("repeat the command when these servers are back")
        elif outcome.problems:
            click.echo("nothing was changed there")
        else:
            click.echo(f"done: {data['action']}")
    elif dry_run:
        click.echo(f"dry run: nothing was changed (would {data['action']})")
    elif data["losses"] and not data["obstacles"] and not force:
        click.echo("nothing was changed; --force does it in spite of what is lost")
    else:
        click.echo("nothing was changed")
