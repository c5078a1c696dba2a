"""What scripts/test and scripts/demo share, as far as it can be tested from within."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def missing_packages(path: str) -> list[str]:
    bash = shutil.which("bash")
    assert bash is not None
    done = subprocess.run(
        [bash, "-c", ". scripts/lib.sh; missing_packages tests"],
        cwd=ROOT,
        env={**os.environ, "PATH": path, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split()


def test_bare_machine_gets_all_packages(tmp_path: Path) -> None:
    missing = missing_packages(str(tmp_path))
    assert {"gcc", "pkg-config", "fuse3", "libfuse3-dev", "attr", "rsync", "git", "npm"} <= set(
        missing
    )
    assert len(missing) == len(set(missing))


def test_one_missing_program_is_its_package(tmp_path: Path) -> None:
    everything = os.environ["PATH"]
    before = missing_packages(everything)
    for directory in everything.split(":"):
        for program in Path(directory).iterdir() if Path(directory).is_dir() else ():
            link = tmp_path / program.name
            if program.name != "getfattr" and not link.is_symlink():
                link.symlink_to(program)
    assert missing_packages(str(tmp_path)) == [*before, "attr"]


def test_failed_checks_show_in_the_summary(tmp_path: Path) -> None:
    (tmp_path / "test_nothing.py").write_text("def test_nothing(): pass\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "tests.common.failed_checks", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "FDFS_FAILED_CHECKS": "ruff check,mypy --strict"},
        capture_output=True,
        text=True,
        check=False,
    )
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stdout
    assert "ruff check" in lines
    assert "mypy --strict" in lines
    assert "1 passed" in lines[-1]
