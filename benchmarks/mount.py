"""What a mounted file system does per second.

Measures any directory, so that other file systems can be measured in the same way::

    python -m benchmarks.mount --mini                  a tracker, a storage and a mount of our own
    python -m benchmarks.mount --mini --replicas 2     ... with two storages that hold the same
    python -m benchmarks.mount --bare                  pyfuse3 without us: bytes kept in memory
    python -m benchmarks.mount --dir /mnt/group1/x     any directory, ours or not
    python -m benchmarks.mount --mini --only small,seq --files 5000 --json

Each round works in a new directory and takes the groups in order; the table shows the median
of the rounds, the lowest and the highest. With ``--mini`` (or ``--pid NAME=PID``) it also shows
CPU microseconds per operation of the processes that do the work.

*Cold* means, as the table's title says: ``remount`` (unmounted and mounted again, so the kernel
and the mount have nothing cached; the storage's disk cache stays), ``drop`` (the kernel's pages,
inodes and directory entries are dropped; needs root), ``fadvise`` (only the pages of the files)
or the shell command given by ``--cold-command``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn
from rich.table import Table

from benchmarks.workloads import GROUPS, Bench, run_rounds

# --- cold caches ----------------------------------------------------------------------------------


def drop_caches(_directory: Path) -> None:
    """Drop what the kernel caches of every file system."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


def fadvise(directory: Path) -> None:
    """Drop the pages of all files below *directory*; attributes and entries stay cached."""
    for base, _, names in os.walk(directory):
        for name in names:
            with open(os.path.join(base, name), "rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def shell_command(command: str) -> Callable[[Path], None]:
    """Make things cold by a command of the user."""

    def run(_directory: Path) -> None:
        subprocess.run(command, shell=True, check=True)

    return run


# --- results --------------------------------------------------------------------------------------


def make_table(bench: Bench, title: str) -> Table:
    """The results for people."""
    table = Table(title=title, title_justify="left")
    table.add_column("operation")
    table.add_column("median", justify="right")
    table.add_column("low", justify="right")
    table.add_column("high", justify="right")
    table.add_column("unit")
    processes = list(dict.fromkeys(key for row in bench.rows.values() for key in row.cpu_us))
    for key in processes:
        table.add_column(f"{key} us", justify="right")
    for row in bench.rows.values():
        cpu = [
            f"{statistics.median(row.cpu_us[key]):,.0f}" if key in row.cpu_us else ""
            for key in processes
        ]
        low, high = min(row.values), max(row.values)
        digits = 0 if row.median >= 100 else 1
        numbers = [f"{value:,.{digits}f}" for value in (row.median, low, high)]
        table.add_row(row.name, *numbers, row.unit, *cpu)
    return table


def as_json(bench: Bench, title: str) -> str:
    """The results for programs."""
    rows = {
        row.name: {
            "unit": row.unit,
            "median": round(row.median, 1),
            "values": [round(value, 1) for value in row.values],
            "cpu_us": {key: round(statistics.median(v), 1) for key, v in row.cpu_us.items()},
        }
        for row in bench.rows.values()
    }
    return json.dumps({"title": title, "rows": rows}, indent=2)


# --- the command line -----------------------------------------------------------------------------


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.mount",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--dir", type=Path, help="the directory to measure")
    where.add_argument("--mini", action="store_true", help="start a cluster and mount it")
    where.add_argument("--bare", action="store_true", help="mount a file system in memory")
    parser.add_argument("--replicas", type=int, default=1, help="storages of --mini")
    parser.add_argument("--only", default=",".join(GROUPS), help=f"of {','.join(GROUPS)}")
    parser.add_argument("--files", type=int, default=2000, help="files per measurement")
    parser.add_argument("--size", type=int, default=1024, metavar="MIB", help="of the large file")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cold", choices=["remount", "drop", "fadvise"], help="see above")
    parser.add_argument("--cold-command", metavar="COMMAND", help="a command that makes it cold")
    parser.add_argument("-o", dest="options", default="", help="mount options for --mini")
    parser.add_argument("--data", type=Path, help="where --mini keeps its data")
    parser.add_argument(
        "--pid", action="append", default=[], metavar="NAME=PID", help="show CPU of this process"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args(arguments)
    options.groups = options.only.split(",")
    if unknown := set(options.groups) - set(GROUPS):
        parser.error(f"--only: {', '.join(sorted(unknown))} is not one of {', '.join(GROUPS)}")
    if options.cold == "remount" and not options.mini:
        parser.error("--cold remount needs --mini; use --cold-command")
    if min(options.files, options.size, options.rounds, options.replicas) < 1:
        parser.error("--files, --size, --rounds and --replicas are at least 1")
    return options


# --- places ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """A directory to measure. ``remount`` unmounts and mounts it again, where we can do that.

    ``processes`` gives the process ids to account for, by name, as they are now.
    """

    directory: Path
    processes: Callable[[], dict[str, int]]
    remount: Callable[[], None] | None = None


@contextmanager
def mini(options: argparse.Namespace) -> Iterator[Place]:
    """A mount of a cluster of our own."""
    from tests.common.cluster import Cluster

    with ExitStack() as stack:
        base = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=options.data)))
        groups = ["group1"] * options.replicas
        cluster = stack.enter_context(Cluster(base / "cluster", groups))
        mount = stack.enter_context(
            cluster.mount(base / "mnt", *filter(None, options.options.split(",")))
        )

        def processes() -> dict[str, int]:
            storages = {
                f"storage {number + 1}": cluster.storage(number=number).pid
                for number in range(options.replicas)
            }
            if options.replicas == 1:
                storages = {"storage": cluster.storage().pid}
            return {"mount": mount.pid, **storages, "tracker": cluster.tracker.pid}

        yield Place(mount.path / "group1", processes, mount.remount)


@contextmanager
def bare() -> Iterator[Place]:
    """A mount of `benchmarks.bare`."""
    with tempfile.TemporaryDirectory() as name:
        process = subprocess.Popen([sys.executable, "-m", "benchmarks.bare", name])
        try:
            while not os.path.ismount(name):
                if process.poll() is not None:
                    raise SystemExit("the file system in memory could not be mounted")
                time.sleep(0.05)
            yield Place(Path(name), lambda: {"mount": process.pid})
        finally:
            subprocess.run(["fusermount3", "-u", name], check=False)
            process.wait(30)


def open_place(options: argparse.Namespace) -> AbstractContextManager[Place]:
    """What the command line says that is to be measured."""
    if options.mini:
        return mini(options)
    if options.bare:
        return bare()
    pids = {name: int(pid) for name, _, pid in (text.partition("=") for text in options.pid)}
    return nullcontext(Place(options.dir, lambda: pids))


def choose_cold(options: argparse.Namespace, place: Place) -> tuple[str, Callable[[Path], None]]:
    """How files are made cold: in words for the title, and what does it to a directory."""
    if options.cold_command:
        return options.cold_command, shell_command(options.cold_command)
    remount = place.remount
    if remount is not None and options.cold in (None, "remount"):
        return "remount", lambda _directory: remount()
    if options.cold == "drop" or (options.cold is None and os.geteuid() == 0):
        return "drop", drop_caches
    return "fadvise", fadvise


# --- the run --------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse_arguments(arguments)
    with ExitStack() as stack:
        progress = stack.enter_context(
            Progress(
                SpinnerColumn(),
                TextColumn("{task.description}"),
                console=Console(stderr=True),
                transient=True,
            )
        )
        task = progress.add_task("starting")
        place = stack.enter_context(open_place(options))
        way, cold = choose_cold(options, place)
        bench = Bench(
            directory=place.directory,
            files=options.files,
            size_mib=options.size,
            cold=cold,
            processes=place.processes,
            show=lambda text: progress.update(task, description=text),
        )
        run_rounds(bench, options.rounds, options.groups)
    storages = "" if options.replicas == 1 else f", {options.replicas} storages"
    what = options.dir or ("bare" if options.bare else f"mini{storages}")
    title = f"{what}: {options.files} files, {options.rounds} rounds, cold by {way}"
    if options.json:
        print(as_json(bench, title))
    else:
        Console(width=None if sys.stdout.isatty() else 120).print(make_table(bench, title))


if __name__ == "__main__":
    main()
