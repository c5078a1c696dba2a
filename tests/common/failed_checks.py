"""A pytest plugin for scripts/test: its summary shows which checks failed before the tests ran.

The summary is the end of what scripts/test prints, so a failed linter would be far above it.
"""

from __future__ import annotations

import os

import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    failed = os.environ.get("FDFS_FAILED_CHECKS")
    if failed:
        terminalreporter.section("checks that failed before the tests", red=True)
        for name in failed.split(","):
            terminalreporter.line(name, red=True)
