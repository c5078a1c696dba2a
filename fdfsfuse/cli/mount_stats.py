"""``fdfs mount-stats``: what a mount on this machine does, from its control socket."""

from __future__ import annotations

import errno
import time
from collections.abc import Sequence
from typing import Any

import click

from fdfsfuse.cli.failure import NotFound
from fdfsfuse.cli.options import json_option
from fdfsfuse.cli.output import print_json, size_text, when
from fdfsfuse.errors import ConnectFailed

_RECENT = 10
_COLUMNS = "{:<12}{:>12}{:>10}{:>10}{:>10}{:>10}{:>10}{:>9}{:>8}{:>8}"


@click.command("mount-stats")
@click.argument("mountpoint", metavar="[MOUNTPOINT]", required=False)
@click.option(
    "--watch", "-w", is_flag=True, help="Show it again and again, with the rates in between."
)
@click.option(
    "--interval",
    "interval_s",
    metavar="SECONDS",
    type=click.FloatRange(min=0.1, max=3600),
    default=2.0,
    show_default=True,
    help="How often, with --watch.",
)
@json_option
def mount_stats(mountpoint: str | None, watch: bool, interval_s: float, as_json: bool) -> None:
    """Show what the mount on MOUNTPOINT does (or every mount of yours).

    Shown are rates and latencies of each kind of request, requests that wait, slow and failed ones,
    caches, the state of each volume, and the options in force. The mount answers even while it
    waits for a volume. With --json each mount is one line; docs/mount.rst lists the keys.

    \b
    Examples:
      fdfs mount-stats /mnt/fdfs
      fdfs mount-stats /mnt/fdfs --watch
      fdfs mount-stats --json | jq .volumes

    Exit codes: 0 done, 3 there is no such mount, 4 it does not answer.
    """
    before: dict[int, dict[str, Any]] = {}
    while True:
        reports = find_reports(mountpoint)
        if watch and not as_json:
            click.clear()
        for report in reports:
            if as_json:
                print_json(report)
            else:
                click.echo("\n".join(_lines_of_any(report, before.get(report["pid"]))))
        if not watch:
            return
        before = {report["pid"]: report for report in reports}
        time.sleep(interval_s)


def find_reports(mountpoint: str | None) -> list[dict[str, Any]]:
    """The reports of the mount on *mountpoint*, or of all mounts of this user.

    Of several, those that do not answer are named on stderr.

    Raises:
        NotFound: there is none. ConnectFailed: it does not answer.
    """
    from concurrent.futures import ThreadPoolExecutor

    from fdfsfuse.fuse.control import ask, is_socket_of, sockets
    from fdfsfuse.fuse.mounttable import mounts, resolve

    wanted = None if mountpoint is None else resolve(mountpoint)
    paths = list(sockets(wanted))
    reports: list[dict[str, Any]] = []
    problem: Exception | None = None
    # Side by side: one that hangs does not take the time of the others.
    with ThreadPoolExecutor(len(paths) + 1) as pool:
        for path, asked in [(path, pool.submit(ask, path)) for path in paths]:
            try:
                reports.append(asked.result())
            except (ConnectionRefusedError, FileNotFoundError):
                continue  # the mount was killed, or has ended
            except (OSError, ValueError) as exc:
                problem = exc
                if wanted is None:
                    silent = [point for point in mounts() if is_socket_of(path, point)]
                    click.echo(f"{(*silent, path)[0]}: the mount does not answer: {exc}", err=True)
    if reports:
        return reports if wanted is None else reports[:1]
    if problem is not None:
        raise ConnectFailed(f"the mount does not answer: {problem}")
    if wanted is not None:
        raise NotFound(f"{mountpoint} is not a mount of yours (who mounted it, and root, may ask)")
    raise NotFound("there is no mount of yours (who mounted, and root, may ask)")


# --- for people ---------------------------------------------------------------------------------


def _lines_of_any(report: dict[str, Any], before: dict[str, Any] | None) -> list[str]:
    try:
        return lines(report, before)
    except (KeyError, TypeError):
        # Another version of ours that is still mounted.
        version, where = report.get("version"), report["mountpoint"]
        return [f"{where}: version {version} tells other things; see them with --json", ""]


def lines(report: dict[str, Any], before: dict[str, Any] | None) -> list[str]:
    """The report as text. With *before*, an earlier one, rates and times are those since then."""
    seconds = report["now"] - (before["now"] if before else report["started"])
    sections = (
        _head(report),
        _operations(report, before, max(seconds, 1e-9)),
        _waiting(report),
        _recent(report),
        _caches(report),
        _volumes(report),
        _options(report),
    )
    return [line for section in sections if section for line in (*section, "")]


def _head(report: dict[str, Any]) -> list[str]:
    return [
        f"{report['source']} on {report['mountpoint']}, process {report['pid']}, "
        f"version {report['version']}, since {when(int(report['started']))}"
    ]


def _operations(report: dict[str, Any], before: dict[str, Any] | None, seconds: float) -> list[str]:
    titles = ("operation", "requests", "per s", "mean", "median", "99 %", "longest")
    shown = [_COLUMNS.format(*titles, "refused", "failed", "now")]
    for name, operation in report["operations"].items():
        earlier = (before or {}).get("operations", {}).get(name, {})
        count = operation["count"] - earlier.get("count", 0)
        histogram = _difference(operation["histogram"], earlier.get("histogram", ()))
        mean = (operation["seconds"] - earlier.get("seconds", 0.0)) / count if count else 0.0
        shown.append(
            _COLUMNS.format(
                name,
                count,
                f"{count / seconds:.1f}",
                _duration(mean),
                _duration(quantile(histogram, 0.5)),
                _duration(quantile(histogram, 0.99)),
                _duration(operation["max_seconds"]),
                operation["refused"] - earlier.get("refused", 0),
                operation["failed"] - earlier.get("failed", 0),
                operation["running"],
            )
        )
    moved = {
        key: report["bytes"][key] - (before["bytes"][key] if before else 0)
        for key in ("read", "written")
    }
    shown.append(
        ", ".join(
            f"{key} {size_text(count)} ({size_text(int(count / seconds))}/s)"
            for key, count in moved.items()
        )
    )
    return shown


def _difference(
    histogram: Sequence[Sequence[float]], earlier: Sequence[Sequence[float]]
) -> list[tuple[int, float]]:
    counts = {bound: count for count, bound in earlier}
    return [(int(count - counts.get(bound, 0)), bound) for count, bound in histogram]


def quantile(histogram: Sequence[tuple[int, float]], part: float) -> float:
    """The upper bound, in seconds, of what the given part of the requests took; 0.0 for none."""
    left = part * sum(count for count, _ in histogram)
    for count, bound in histogram:
        left -= count
        if count and left <= 0:
            return bound
    return 0.0


def _duration(seconds: float) -> str:
    if seconds <= 0:
        return "-"
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} us"
    return f"{seconds * 1e3:.1f} ms" if seconds < 1 else f"{seconds:.1f} s"


def _waiting(report: dict[str, Any]) -> list[str]:
    waiting = report["waiting"]
    if not waiting:
        return []
    shown = [f"{len(waiting)} requests wait for more than a second:"]
    for item in waiting[:_RECENT]:
        shown.append(f"  {_duration(item['seconds']):>9}  {item['operation']}({item['what']})")
    return shown


def _recent(report: dict[str, Any]) -> list[str]:
    if not report["recent"]:
        return []
    shown = ["slow and failed requests, the last ones:"]
    for item in report["recent"][-_RECENT:]:
        error = errno.errorcode.get(item["error"], str(item["error"])) if item["error"] else "slow"
        shown.append(
            f"  {when(int(item['at']))}  {_duration(item['seconds']):>9}  {error:<9} "
            f"{item['operation']}({item['what']})"
        )
    return shown


def _caches(report: dict[str, Any]) -> list[str]:
    caches, options = report["caches"], report["options"]
    pages, names = caches["pages"], caches["names"]
    return [
        f"names and attributes: {_rate(names)} of requests answered from memory, "
        f"{caches['inodes_known_to_the_kernel']} inodes known to the kernel",
        f"pages: kept at {_rate(pages)} of {pages['hits'] + pages['misses']} opens",
        f"open files: {caches['open_files']}, {caches['files_not_stored']} not stored, "
        f"{size_text(caches['write_buffer_bytes'])} of "
        f"{size_text(options['dirty_bytes'])} write buffer",
        f"content of small files: {size_text(caches['content_bytes'])} of "
        f"{size_text(options['clean_bytes'])}; read-ahead: "
        f"{size_text(caches['read_ahead_bytes'])} of {size_text(options['read_ahead_bytes'])}; "
        f"files not opened yet: {size_text(caches['files_ahead_bytes'])} of "
        f"{size_text(options['ahead_bytes'])}",
    ]


def _rate(usage: dict[str, int]) -> str:
    total = usage["hits"] + usage["misses"]
    return f"{100 * usage['hits'] / total:.0f} %" if total else "-"


def _volumes(report: dict[str, Any]) -> list[str]:
    shown = []
    for name, volume in report["volumes"].items():
        if volume["connected"]:
            state = (
                f"connected to {volume['storage']}, view {volume['view']}, lease "
                f"{volume['lease_left_seconds']:.1f} of {volume['lease_seconds']:g} s"
            )
        else:
            state = f"{'DOWN' if volume['down'] else 'not connected'}: {volume['problem']}"
        shown.append(f"volume {name}: {state}")
        shown.append(
            f"  requests that wait: {volume['waiting']}, times down: {volume['times_down']}, "
            f"storages: {', '.join(volume['storages']) or '-'}"
        )
        shown.append(
            "  remembered: {inodes} inodes and {names} names, {limit} of each at most".format(
                **volume["remembered"]
            )
        )
        ahead = volume.get("ahead")  # mounts of older releases have none
        if ahead:
            shown.append(
                "  changes of names answered ahead: {answered}, of which {unanswered} wait for the"
                " storage and {refused} were refused".format(**ahead)
            )
        for call, counted in volume["calls"].items():
            mean = _duration(counted["seconds"] / counted["count"])
            shown.append(f"  {call:<14}{counted['count']:>12} calls, mean {mean}")
    return shown


def _options(report: dict[str, Any]) -> list[str]:
    pairs = (
        f"{name}={value if not isinstance(value, list) else ','.join(value) or '-'}"
        for name, value in report["options"].items()
    )
    return ["options: " + " ".join(pairs)]
