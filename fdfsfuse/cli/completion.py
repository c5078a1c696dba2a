"""``fdfs completion``: scripts for the shells."""

from __future__ import annotations

import click


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print a script that completes fdfs in SHELL.

    \b
    bash: fdfs completion bash > ~/.local/share/bash-completion/completions/fdfs
    zsh:  fdfs completion zsh > "${fpath[1]}/_fdfs"
    fish: fdfs completion fish > ~/.config/fish/completions/fdfs.fish
    """
    from click.shell_completion import get_completion_class

    from fdfsfuse.cli.main import fdfs

    kind = get_completion_class(shell)
    assert kind is not None
    script = kind(fdfs, {}, "fdfs", "_FDFS_COMPLETE")
    # Not script.source(): for bash that runs bash to look at its version.
    click.echo(script.source_template % script.source_vars())
