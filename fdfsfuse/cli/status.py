"""``fdfs status``."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

import click

from fdfsfuse.cli.completing import complete_group
from fdfsfuse.cli.failure import EXIT_NOT_WELL
from fdfsfuse.cli.options import ChosenCluster, json_option, on_cluster
from fdfsfuse.cli.output import print_json

if TYPE_CHECKING:
    from collections.abc import Callable

    from fdfsfuse.cli.cluster_state import ClusterState
    from fdfsfuse.client.client import Client


_PIPE_WIDTH = 10_000
"""Lines that go to another program are not folded."""


@click.command()
@click.argument("volumes", metavar="[VOLUME...]", nargs=-1, shell_complete=complete_group)
@click.option("--watch", "-w", is_flag=True, help="Show it again and again, until Ctrl-C.")
@click.option(
    "--interval",
    "interval_s",
    metavar="SECONDS",
    type=click.FloatRange(min=0.1),
    default=2.0,
    show_default=True,
    help="How often, with --watch.",
)
@click.option("--check", is_flag=True, help="Exit with 6 unless all is well, for monitoring.")
@json_option
@on_cluster
def status(
    volumes: tuple[str, ...],
    watch: bool,
    interval_s: float,
    check: bool,
    as_json: bool,
    cluster: ChosenCluster,
) -> int:
    """Show trackers, volumes and servers: states and why, space, what is left to copy.

    A volume is ok, degraded (something is missing, everything can be reached) or down. For each
    server it shows its state and the reason, and for each pair of servers that is not in sync what
    is left to copy and how long that will take. FastDFS servers tell less than ours: there, the
    delay follows from the timestamps that the trackers have.

    With --json prints one object with the keys trackers, trackers_state, trackers_why and volumes;
    with --watch, one such line each time. docs/cli.rst lists the keys.

    \b
    Examples:
      fdfs status --tracker 10.0.0.1
      fdfs status --watch group1
      fdfs status --check >/dev/null || mail -s "look at fdfs" ops
      fdfs status --json | jq '.volumes[] | select(.state != "ok") | .name'
    """

    async def use(client: Client) -> ClusterState:
        from fdfsfuse.cli.cluster_state import look

        found = await look(client, min(cluster.settings().timeout_s, 5.0))
        if volumes:
            _select(found, volumes)
        return found

    if watch:
        try:
            _watch(lambda: cluster.run(use), as_json, interval_s)
        except KeyboardInterrupt:
            return 0
    found = cluster.run(use)
    _show(found, as_json)
    return EXIT_NOT_WELL if check and not _is_well(found) else 0


def _is_well(cluster: ClusterState) -> bool:
    from fdfsfuse.cli.cluster_state import state_of, trackers_state

    states = [state_of(volume)[0] for volume in cluster.volumes]
    return {*states, trackers_state(cluster)[0]} == {"ok"}


def _select(found: ClusterState, names: tuple[str, ...]) -> None:
    from fdfsfuse.errors import NoVolumeError

    known = {volume.stat.group: volume for volume in found.volumes}
    for name in names:
        if name not in known:
            raise NoVolumeError(name, sorted(known))
    found.volumes = [known[name] for name in names]


def _show(found: ClusterState, as_json: bool) -> None:
    from fdfsfuse.cli.status_text import cluster_data, render

    if as_json:
        print_json(cluster_data(found))
        return
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _PIPE_WIDTH
    console.print(render(found))


def _watch(look: Callable[[], ClusterState], as_json: bool, interval_s: float) -> None:
    """Show the cluster until interrupted; what does not answer is shown as that."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    from fdfsfuse.cli.failure import explain
    from fdfsfuse.cli.status_text import render
    from fdfsfuse.errors import ConnectionProblem

    console = Console(highlight=False)
    if as_json or not console.is_terminal:
        while True:
            _show(look(), as_json)
            sys.stdout.flush()
            time.sleep(interval_s)
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            try:
                live.update(render(look()), refresh=True)
            except ConnectionProblem as exc:
                live.update(Text(explain(exc)), refresh=True)
            time.sleep(interval_s)
