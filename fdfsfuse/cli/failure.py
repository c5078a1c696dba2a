"""From exceptions to one line on stderr and an exit code."""

from __future__ import annotations

import errno

import click

from fdfsfuse.errors import (
    ConfigError,
    ConnectFailed,
    ConnectionProblem,
    DeadlineExceeded,
    FdfsError,
    NoNamesError,
    StatusError,
    UsageError,
    describe,
)

EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_NOT_FOUND = 3
EXIT_UNREACHABLE = 4
EXIT_REFUSED = 5
EXIT_NOT_WELL = 6
EXIT_INTERRUPTED = 130


class NotFound(FdfsError):
    """What the user named does not exist."""


def report(exc: BaseException, program: str) -> int:
    """Print what *exc* means to the user; return the exit code.

    A defect of ours keeps its traceback.
    """
    exc = _innermost(exc)
    if isinstance(exc, click.exceptions.Exit):
        return exc.exit_code
    if isinstance(exc, SystemExit):
        return exc.code if isinstance(exc.code, int) else EXIT_FAILURE
    if isinstance(exc, (KeyboardInterrupt, click.Abort)):
        click.echo(f"{program}: interrupted", err=True)
        return EXIT_INTERRUPTED
    if isinstance(exc, click.ClickException):
        exc.show()
        return exc.exit_code
    if not isinstance(exc, (FdfsError, OSError)):
        raise exc
    click.echo(f"{program}: {explain(exc)}", err=True)
    return exit_code(exc)


def _innermost(exc: BaseException) -> BaseException:
    """The one exception inside groups; an interrupt counts more than what it caused."""
    inside: tuple[BaseException, ...] = getattr(exc, "exceptions", ())
    if not inside:
        return exc
    found = [_innermost(item) for item in inside]
    return next((item for item in found if isinstance(item, KeyboardInterrupt)), found[0])


def exit_code(exc: FdfsError | OSError) -> int:
    """The documented exit code of an error."""
    if isinstance(exc, (UsageError, ConfigError)):
        return EXIT_USAGE
    if isinstance(exc, NotFound):
        return EXIT_NOT_FOUND
    if isinstance(exc, StatusError):
        return EXIT_NOT_FOUND if exc.errno == errno.ENOENT else EXIT_REFUSED
    if isinstance(exc, ConnectionProblem):
        return EXIT_UNREACHABLE
    return EXIT_REFUSED if isinstance(exc, NoNamesError) else EXIT_FAILURE


def explain(exc: FdfsError | OSError) -> str:
    """One line that says what happened and, where we know, what to do."""
    text = str(exc)
    if isinstance(exc, StatusError):
        text = str(exc.strerror)
        advice = _STATUS_ADVICE.get(exc.errno or 0)
    elif isinstance(exc, DeadlineExceeded):
        advice = "try again, or allow more time with --timeout"
    elif isinstance(exc, ConnectFailed):
        advice = "check the address, and that the server runs"
    elif isinstance(exc, NoNamesError):
        advice = "files of this volume have ids only"
    elif isinstance(exc, OSError):
        return describe(exc)
    else:
        advice = None
    line = f"{text}; {advice}" if advice else text
    return " ".join(line.split())


_STATUS_ADVICE = {
    errno.ENOSPC: "make room on the storages, or add one (fdfs status shows what is reserved)",
    errno.EINVAL: "the server does not accept this request",
}
