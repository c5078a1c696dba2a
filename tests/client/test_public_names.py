"""What the packages offer: the names that may not change from one release to the next."""

from __future__ import annotations

import errno
import inspect
import pickle
import subprocess
import sys

import pytest

import fdfsfuse
from fdfsfuse import blocking, errors

PUBLIC = {
    "Address",
    "Client",
    "ConfigError",
    "ConnectFailed",
    "ConnectionBroken",
    "ConnectionProblem",
    "DeadlineExceeded",
    "DownloadStream",
    "FdfsError",
    "FileDetails",
    "FileKind",
    "IntegrityError",
    "NoVolumeError",
    "NotFoundError",
    "ProtocolError",
    "StatusError",
    "TooFewCopiesError",
    "UsageError",
    "__version__",
}

METHODS = {
    "append",
    "close",
    "delete",
    "download",
    "download_to",
    "exists",
    "get_metadata",
    "info",
    "link",
    "modify",
    "open",
    "regenerate",
    "set_metadata",
    "truncate",
    "upload",
    "upload_slave",
}

ERRNO = {
    errors.UsageError: errno.EINVAL,
    errors.ProtocolError: errno.EPROTO,
    errors.IntegrityError: errno.EIO,
    errors.ConnectionProblem: errno.EHOSTUNREACH,
    errors.ConnectionBroken: errno.ECONNRESET,
    errors.ConnectFailed: errno.ECONNREFUSED,
    errors.DeadlineExceeded: errno.ETIMEDOUT,
    errors.NoTreeError: errno.EHOSTUNREACH,
    errors.NoNamesError: errno.EOPNOTSUPP,
    errors.ConfigError: errno.EINVAL,
}


def test_names_of_the_packages() -> None:
    assert set(fdfsfuse.__all__) == PUBLIC
    assert set(blocking.__all__) == {"Client", "DownloadStream", "FileDetails"}
    for package in (fdfsfuse, blocking):
        for name in package.__all__:
            assert getattr(package, name) is not None
    with pytest.raises(AttributeError):
        fdfsfuse.NoSuchThing  # noqa: B018


def test_both_clients_have_the_same_methods() -> None:
    def methods(client: type) -> dict[str, list[str]]:
        return {
            name: list(inspect.signature(method).parameters)
            for name, method in vars(client).items()
            if not name.startswith("_") and callable(method)
        }

    assert methods(fdfsfuse.Client) == methods(blocking.Client)
    assert methods(blocking.Client).keys() >= METHODS


@pytest.mark.parametrize("kind", ERRNO)
def test_every_error_has_an_errno(kind: type[errors.FdfsError]) -> None:
    assert kind("why").errno == ERRNO[kind]


def test_errors_of_servers() -> None:
    missing = errors.StatusError(errno.ENOENT, "group1/M00")
    assert type(missing) is errors.NotFoundError
    assert isinstance(missing, FileNotFoundError)
    assert (missing.errno, missing.what) == (errno.ENOENT, "group1/M00")
    full = errors.StatusError(errno.ENOSPC)
    assert type(full) is errors.StatusError
    assert str(full) == "[Errno 28] No space left on device"
    few = errors.TooFewCopiesError("group1/M00", 1, 2, "why")
    assert (few.errno, few.file_id, few.count) == (errno.EAGAIN, "group1/M00", 1)
    unknown = errors.NoVolumeError("group9", [])
    assert isinstance(unknown, errors.NotFoundError)
    assert unknown.strerror == "there is no volume group9; there are: none"
    for error in (missing, full, unknown):
        copy = pickle.loads(pickle.dumps(error))
        assert (type(copy), copy.args, copy.what) == (type(error), error.args, error.what)


def test_the_blocking_client_needs_no_trio() -> None:
    code = "import fdfsfuse.blocking, sys; sys.exit('trio' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
