"""``fdfs``: files of a FastDFS cluster from the command line.

Each subcommand is a module of its own, imported when it is used, so that ``fdfs --help`` and
shell completion answer at once.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

import click
from click.shell_completion import CompletionItem

COMMANDS = {
    "upload": ("fdfsfuse.cli.upload", "Store files and print their ids."),
    "download": ("fdfsfuse.cli.download", "Fetch a file by its id."),
    "delete": ("fdfsfuse.cli.delete", "Delete files by their ids."),
    "exists": ("fdfsfuse.cli.exists", "Tell whether files exist."),
    "append": ("fdfsfuse.cli.append", "Append to an appender file."),
    "modify": ("fdfsfuse.cli.modify", "Overwrite a part of an appender file."),
    "truncate": ("fdfsfuse.cli.truncate", "Set the size of an appender file."),
    "regenerate": ("fdfsfuse.cli.regenerate", "Make an appender file a normal one."),
    "slave": ("fdfsfuse.cli.slave", "Store a file under the id of another with a prefix."),
    "link": ("fdfsfuse.cli.link", "Give a file a further id."),
    "info": ("fdfsfuse.cli.info", "Show size, time, checksum and source of files."),
    "decode": ("fdfsfuse.cli.decode", "Explain every field of file ids, offline."),
    "crc32": ("fdfsfuse.cli.crc32", "Print the CRC-32 of local files."),
    "url": ("fdfsfuse.cli.url", "Print the web addresses of files, with tokens."),
    "meta": ("fdfsfuse.cli.meta", "Read and change the metadata of files."),
    "id": ("fdfsfuse.cli.ids", "Path on a mount to file id."),
    "path": ("fdfsfuse.cli.paths", "File id to path on the mount."),
    "status": ("fdfsfuse.cli.status", "Show trackers, volumes, servers, their states and why."),
    "admin": ("fdfsfuse.cli.admin", "Remove servers and groups, give a group a directory tree."),
    "bench": ("fdfsfuse.cli.bench", "Measure how fast a cluster is."),
    "mini": ("fdfsfuse.cli.mini", "Run a small cluster and its mount on this machine."),
    "install-units": (
        "fdfsfuse.cli.install_units",
        "Install systemd units for servers and mounts.",
    ),
    "install-helpers": ("fdfsfuse.cli.install_helpers", "Let mount(8) and fstab mount volumes."),
    "mount-stats": ("fdfsfuse.cli.mount_stats", "Show what the mounts on this machine do."),
    "completion": ("fdfsfuse.cli.completion", "Print a script that completes fdfs in your shell."),
}
"""Name -> (module, help). The module's attribute has the command's name, as Python can write it
(``id_`` for ``id``, ``install_units`` for ``install-units``)."""


class _LazyGroup(click.Group):
    """Subcommands from `COMMANDS`, imported when they are needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(COMMANDS[cmd_name][0])
        found = getattr(module, "id_" if cmd_name == "id" else cmd_name.replace("-", "_"))
        assert isinstance(found, click.Command)
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        if incomplete.startswith("-"):
            return super().shell_complete(ctx, incomplete)
        return [
            CompletionItem(name, help=text)
            for name, (_, text) in COMMANDS.items()
            if name.startswith(incomplete)
        ]


@click.group(
    cls=_LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="fdfsfuse", prog_name="fdfs")
def fdfs() -> None:
    """Store, fetch and look after files of a FastDFS cluster.

    Say where the trackers are with --tracker HOST[:PORT] (repeat it, or separate several by
    commas), with a client.conf (--config), or with the environment variable FDFS_TRACKERS;
    otherwise they are read from /etc/fdfs/client.conf. "fdfs COMMAND --help" explains a command.

    \b
    Examples:
      export FDFS_TRACKERS=10.0.0.1,10.0.0.2
      fdfs status
      fdfs upload photo.jpg
      fdfs download group1/M00/00/00/fwAAC2sC71qAc1b5AAAACw1KEYU551.txt hello.txt
      fdfs meta set group1/M00/00/00/fwAAC2sC71qAc1b5AAAACw1KEYU551.txt width=1024
      fdfs id /mnt/fdfs/group1/photo.jpg
      tar c project | fdfs upload - --extension tar

    \b
    Exit codes:
      0    done
      1    something else failed (a local file, an answer that makes no sense)
      2    wrong use: options or arguments
      3    there is no such file, volume or name
      4    a server could not be reached or did not answer in time
      5    a server refused it (no space, ...)
      6    fdfs status --check: something is wrong with the cluster
      130  interrupted (Ctrl-C)
    """


def main() -> None:
    """Entry point of ``fdfs``."""
    sys.exit(run(fdfs, "fdfs"))


def run(command: click.Command, name: str, arguments: list[str] | None = None) -> int:
    """Run a click command; print one line about what went wrong. Returns the exit code.

    *arguments* are those of the process if None.
    """
    from fdfsfuse.cli import failure

    try:
        result: Any = command.main(arguments, prog_name=name, standalone_mode=False)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader of our output has gone (`fdfs status | head`): say nothing.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return failure.EXIT_FAILURE
    except BaseException as exc:
        return failure.report(exc, name)
    return result if isinstance(result, int) else 0


if __name__ == "__main__":
    main()
