# Shared by scripts/test and scripts/demo: what a fresh Debian or Ubuntu machine lacks.
# shellcheck shell=bash
#
# Sourced from the top of the project.  Nothing is installed when nothing is missing, so a second
# run is quick and needs no network.

say() { printf '%s\n' "== $*" >&2; }
die() { printf '%s\n' "$*" >&2; exit 1; }

# The distribution's interpreter, which python3-dev and python3-venv belong to and which is built
# with optimisations, before another one that is earlier on the PATH.
default_python() {
    if /usr/bin/python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
        echo /usr/bin/python3
    else
        echo python3
    fi
}
PYTHON=${PYTHON:-$(default_python)}

# Print the Debian packages that are missing, one per line.  "missing_packages tests" has those that
# only tests need as well.
missing_packages() {
    local command package
    # command -> package; the tests run these programs on the mount
    while read -r command package; do
        command -v "$command" >/dev/null 2>&1 || echo "$package"
    done <<'TABLE'
python3 python3
gcc gcc
pkg-config pkg-config
fusermount3 fuse3
getfattr attr
getfacl acl
git git
rsync rsync
sqlite3 sqlite3
systemd-analyze systemd
tar tar
TABLE
    if [ "${1-}" = tests ]; then
        # For a FastDFS client that others wrote in JavaScript.
        command -v node >/dev/null 2>&1 || echo nodejs
        command -v npm >/dev/null 2>&1 || echo npm
        command -v lsattr >/dev/null 2>&1 || echo e2fsprogs
    fi
    pkg-config --exists fuse3 2>/dev/null || echo libfuse3-dev
    # The C library's headers, which gcc only recommends.
    [ -e /usr/include/stdio.h ] || echo libc6-dev
    if [ ! -x .venv/bin/python ]; then
        "$PYTHON" -c 'import ensurepip, venv' 2>/dev/null || echo python3-venv
    fi
    "$PYTHON" - 2>/dev/null <<'PYTHON' || echo python3-dev
import os, sys, sysconfig
sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))
PYTHON
}

as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    else
        sudo "$@"
    fi
}

install_packages() {
    local packages
    mapfile -t packages < <(missing_packages "$@")
    [ "${#packages[@]}" -gt 0 ] || return 0
    command -v apt-get >/dev/null 2>&1 ||
        die "Missing here: ${packages[*]} (names of Debian packages). Install them and try again."
    [ "$(id -u)" = 0 ] || command -v sudo >/dev/null 2>&1 ||
        die "Missing here: ${packages[*]}. Install them as root: apt-get install ${packages[*]}"
    say "installing system packages: ${packages[*]}"
    as_root apt-get -qq -o Acquire::Retries=5 update >&2 || say "apt-get update failed; trying with the lists that are here"
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -o Dpkg::Use-Pty=0 -o Acquire::Retries=5 install \
        --no-install-recommends -y "${packages[@]}" >/dev/null ||
        die "The packages could not be installed: ${packages[*]}"
}

# Make .venv, or bring it up to date when pyproject.toml or the interpreter changed.
make_venv() {
    local wanted
    "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
        die "Python 3.10 or newer is needed; $("$PYTHON" -V) is here. Set PYTHON to another one."
    if [ -e .venv ] && ! .venv/bin/python -c '' 2>/dev/null; then
        say "the virtual environment .venv does not work here: making it anew"
        rm -rf .venv
    fi
    if [ ! -e .venv ]; then
        say "making the virtual environment .venv"
        "$PYTHON" -m venv .venv || die "The virtual environment could not be made."
    fi
    # The path is in it because a directory that was moved has commands with the old path.
    wanted="$(.venv/bin/python -V) $PWD $(sha256sum <pyproject.toml)"
    if [ "$(cat .venv/.installed 2>/dev/null)" != "$wanted" ]; then
        say "installing fdfsfuse and what its tests need into .venv"
        # An environment whose making was broken off has no pip yet.
        .venv/bin/python -m pip --version >/dev/null 2>&1 ||
            .venv/bin/python -m ensurepip >/dev/null || die "pip could not be installed."
        .venv/bin/python -m pip install --quiet --retries 10 --disable-pip-version-check -e '.[test]' >&2 ||
            die "The Python packages could not be installed."
        printf '%s\n' "$wanted" >.venv/.installed
    fi
}

# Set up everything; the current directory is the top of the project.  "prepare tests" for the tests.
prepare() {
    install_packages "$@"
    make_venv
}
