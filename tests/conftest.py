"""What every test gets: a clean environment, markers for tools, and no silent skip in CI."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Generator
from typing import TypeVar

import hypothesis
import pytest

# Examples compile code: how long one takes says nothing about whether it is right.
hypothesis.settings.register_profile("project", deadline=None)
hypothesis.settings.load_profile("project")

HARDWARE = "hardware"
Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Option values in the developer's environment must not change what a test sees."""
    for variable in [name for name in os.environ if name.startswith("TVM_MOBILENET_")]:
        monkeypatch.delenv(variable)


@pytest.fixture
def cli() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs the command line in a process of its own: cli("cost", "mobilenet_v1", cwd=...)."""

    def run(*arguments: object, **kwargs: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "tvm_mobilenet", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False, **kwargs)  # type: ignore[call-overload]

    return run


@functools.cache
def _host_features() -> frozenset[str]:
    from tvm_mobilenet.targets.native import host_features

    return frozenset(name for name, present in host_features().items() if present)


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in item.iter_markers("needs_tool"):
        program, package = marker.args
        if shutil.which(program) is None:
            pytest.skip(f"{program} is missing: apt-get install {package}")
    for marker in item.iter_markers("needs_cpu"):
        if missing := set(marker.args) - _host_features():
            pytest.skip(f"{HARDWARE}: this CPU lacks {', '.join(sorted(missing))}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    return _fail_skips_in_ci((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    return _fail_skips_in_ci((yield))


def _fail_skips_in_ci(report: Report) -> Report:
    """In CI everything is to be installed: only hardware that is not there excuses a skip."""
    if os.environ.get("CI") and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if not reason.removeprefix("Skipped: ").startswith(HARDWARE):
            report.outcome = "failed"
            report.longrepr = f"skipped, which is a failure in CI: {reason}"
    return report
