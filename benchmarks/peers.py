"""The mount beside other distributed file systems, in one run.

Every round measures each system in turn with the same work (`benchmarks.mount`), so that the
ratio holds although a machine's speed drifts::

    python -m benchmarks.peers                         ours, MooseFS and GlusterFS, two servers each
    python -m benchmarks.peers --systems ours,moosefs --only small,tree --rounds 3

Needs root, and the Debian packages ``moosefs-master moosefs-chunkserver moosefs-client
glusterfs-server glusterfs-client iproute2`` for the systems that are named.  Each system keeps two
copies of every file: ours in a volume of two storages, MooseFS with goal 2, GlusterFS with replica
2.  The others run in network namespaces of their own, since MooseFS refuses loopback addresses;
nothing of them is left behind.  ``pyfuse3`` is a file system in memory without a server: where it
is no quicker than a system written in C, no mount that uses pyfuse3 can be.  *Cold* means that the
kernel's caches were dropped.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn
from rich.table import Table

from benchmarks.mount import bare, drop_caches
from benchmarks.workloads import GROUPS, Bench, run_rounds

READY_TIMEOUT_S = 60.0


def run(*command: object) -> str:
    """Run a command; its output, which is shown when it fails."""
    done = subprocess.run(
        [str(part) for part in command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}: exit {done.returncode}\n{done.stdout}")
    return done.stdout


def start(*command: object) -> None:
    """Run a command that leaves a daemon behind, which keeps what it inherits open."""
    subprocess.run(
        [str(part) for part in command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=True,
    )


def wait_until(ready: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_S
    while not ready():
        if time.monotonic() > deadline:
            raise SystemExit(f"no {what} within {READY_TIMEOUT_S:g} s")
        time.sleep(0.1)


@contextmanager
def namespace(*addresses: str) -> Iterator[list[str]]:
    """A network namespace with *addresses*; yields the command prefix that runs in it."""
    name = f"fdfsfuse-{os.getpid()}-{addresses[0].replace('.', '-')}"
    run("ip", "netns", "add", name)
    try:
        run("ip", "-n", name, "link", "set", "lo", "up")
        for address in addresses:
            run("ip", "-n", name, "addr", "add", f"{address}/32", "dev", "lo")
        # Not `ip netns exec`, whose mounts nobody else sees.
        yield ["nsenter", f"--net=/run/netns/{name}"]
    finally:
        run("ip", "netns", "del", name)


@contextmanager
def ours(base: Path) -> Iterator[Path]:
    """A tracker, a volume of two storages and a mount."""
    from tests.common.cluster import Cluster

    with (
        Cluster(base / "cluster", ("group1", "group1")) as cluster,
        cluster.mount(base / "mnt") as mount,
    ):
        yield mount.path / "group1"


@contextmanager
def moosefs(base: Path) -> Iterator[Path]:
    """A master, two chunk servers and a mount with goal 2."""
    master, *servers = "10.77.0.1", "10.77.0.2", "10.77.0.3"
    common = "WORKING_USER = root\nWORKING_GROUP = root\n"
    mount = base / "mnt"
    mount.mkdir()
    data = base / "master"
    data.mkdir()
    (data / "metadata.mfs").write_text("MFSM NEW")
    exports = base / "exports.cfg"
    exports.write_text("* / rw,alldirs,maproot=0\n")
    listen = "".join(f"{who}_LISTEN_HOST = {master}\n" for who in ("MATOML", "MATOCS", "MATOCL"))
    conf = base / "master.cfg"
    conf.write_text(f"{common}DATA_PATH = {data}\nEXPORTS_FILENAME = {exports}\n{listen}")
    with ExitStack() as stack:
        inside = stack.enter_context(namespace(master, *servers))
        start(*inside, "mfsmaster", "-c", conf, "start")
        stack.callback(run, *inside, "mfsmaster", "-c", conf, "stop")
        for number, address in enumerate(servers):
            disk, state = base / f"disk{number}", base / f"chunks{number}"
            disk.mkdir()
            state.mkdir()
            disks = base / f"disks{number}.cfg"
            disks.write_text(f"{disk}\n")
            conf = base / f"chunks{number}.cfg"
            conf.write_text(
                f"{common}DATA_PATH = {state}\nHDD_CONF_FILENAME = {disks}\n"
                f"MASTER_HOST = {master}\nBIND_HOST = {address}\nCSSERV_LISTEN_HOST = {address}\n"
            )
            start(*inside, "mfschunkserver", "-c", conf, "start")
            stack.callback(run, *inside, "mfschunkserver", "-c", conf, "stop")
        start(*inside, "mfsmount", mount, "-H", master)
        stack.callback(run, "umount", mount)
        run(*inside, "mfssetgoal", 2, mount)
        wait_until(lambda: os.statvfs(mount).f_blocks > 0, "chunk server of MooseFS")
        # Both must have joined, else the first files get one copy.
        time.sleep(3)
        yield mount


@contextmanager
def glusterfs(base: Path) -> Iterator[Path]:
    """A volume of two bricks, replica 2, and its mount."""
    host = socket.gethostname()
    mount, work, logs = base / "mnt", base / "work", base / "logs"
    for directory in (mount, work, logs):
        directory.mkdir()
    pid_file, volfile = base / "glusterd.pid", base / "glusterd.vol"
    volfile.write_text(
        "volume management\n    type mgmt/glusterd\n"
        f"    option working-directory {work}\n    option transport-type socket\n"
        "    option transport.socket.listen-port 24007\nend-volume\n"
    )

    def stop_daemon() -> None:
        pid = int(pid_file.read_text())
        os.kill(pid, 15)
        wait_until(lambda: not Path(f"/proc/{pid}").exists(), "end of glusterd")

    with ExitStack() as stack:
        inside = stack.enter_context(namespace("10.78.0.1"))
        gluster = [*inside, "gluster", "--mode=script"]
        log = f"--log-file={logs}/glusterd.log"
        start(*inside, "glusterd", f"--volfile={volfile}", f"--pid-file={pid_file}", log)
        stack.callback(stop_daemon)
        wait_until(
            lambda: (
                subprocess.run([*gluster, "volume", "list"], capture_output=True).returncode == 0
            ),
            "answer of glusterd",
        )
        bricks = [f"{host}:{base}/brick{number}" for number in range(2)]
        run(*gluster, "volume", "create", "bench", "replica", 2, *bricks, "force")
        run(*gluster, "volume", "start", "bench")
        stack.callback(run, *gluster, "volume", "stop", "bench", "force")
        server = f"--volfile-server={host}"
        start(
            *inside, "glusterfs", server, "--volfile-id=bench", f"--log-file={logs}/mnt.log", mount
        )
        stack.callback(run, "umount", mount)
        wait_until(lambda: os.path.ismount(mount), "mount of GlusterFS")
        yield mount


@contextmanager
def pyfuse3(base: Path) -> Iterator[Path]:
    """A file system in this machine's memory: what pyfuse3 leaves to whoever uses it."""
    with bare() as place:
        yield place.directory


SYSTEMS: dict[str, Callable[[Path], AbstractContextManager[Path]]] = {
    "ours": ours,
    "moosefs": moosefs,
    "glusterfs": glusterfs,
    "pyfuse3": pyfuse3,
}
DEFAULT = ("ours", "moosefs", "glusterfs")


def make_table(benches: dict[str, Bench]) -> Table:
    """Medians of each system, and ours divided by each other's."""
    first, *others = benches
    table = Table(title=f"{first} beside {', '.join(others) or 'nobody'}", title_justify="left")
    table.add_column("operation")
    for name in benches:
        table.add_column(name, justify="right")
    for name in others:
        table.add_column(f"{first} / {name}", justify="right")
    table.add_column("unit")
    for key, row in benches[first].rows.items():
        if key.startswith("(machine)"):
            continue
        medians = {name: b.rows[key].median for name, b in benches.items() if key in b.rows}
        cells = [f"{medians[name]:,.0f}" if name in medians else "" for name in benches]
        cells += [
            f"{medians[first] / medians[name]:.2f}" if medians.get(name) else "" for name in others
        ]
        table.add_row(key, *cells, row.unit)
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--systems", default=",".join(DEFAULT), help=f"of {','.join(SYSTEMS)}")
    parser.add_argument("--only", default=",".join(GROUPS), help=f"of {','.join(GROUPS)}")
    parser.add_argument("--files", type=int, default=1000, help="files per measurement")
    parser.add_argument("--size", type=int, default=512, metavar="MIB", help="of the large file")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--data", type=Path, help="where the systems keep their data")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args(arguments)
    systems, groups = options.systems.split(","), options.only.split(",")
    for given, known in ((systems, SYSTEMS), (groups, GROUPS)):
        if unknown := set(given) - set(known):
            parser.error(f"{', '.join(sorted(unknown))} is not one of {', '.join(known)}")
    if os.geteuid() != 0:
        parser.error("network namespaces, mounts and dropping the kernel's caches need root")
    benches: dict[str, Bench] = {}
    progress = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        console=Console(stderr=True),
        transient=True,
    )
    with progress, ExitStack() as stack:
        task = progress.add_task("starting")
        base = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=options.data)))
        for name in systems:
            (base / name).mkdir()
            benches[name] = Bench(
                directory=stack.enter_context(SYSTEMS[name](base / name)),
                files=options.files,
                size_mib=options.size,
                cold=drop_caches,
                processes=dict,
                show=lambda text, name=name: progress.update(  # type: ignore[misc]
                    task, description=f"{name}: {text}"
                ),
            )
        for _ in range(options.rounds):
            for group in groups:
                for bench in benches.values():
                    run_rounds(bench, 1, [group])
    if options.json:
        figures = {
            name: {key: row.values for key, row in bench.rows.items()}
            for name, bench in benches.items()
        }
        print(json.dumps(figures, indent=2))
    else:
        Console(width=None if sys.stdout.isatty() else 120).print(make_table(benches))


if __name__ == "__main__":
    main()
