"""Candidates measured on two servers of one key, one of which is killed under its work."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tvm_mobilenet.errors import InputError
from tvm_mobilenet.remote.measure import values
from tvm_mobilenet.remote.tracker import Address, Tracker

pytestmark = [pytest.mark.slow, pytest.mark.rpc]

CRASH = 'extern "C" int __tvm_ffi_main(void*, void*, int, void*) { *(volatile int*)nullptr = 1; }'
HANG = 'extern "C" int __tvm_ffi_main(void*, void*, int, void*) { for (volatile int i = 0;; i++); }'


@pytest.fixture(scope="module")
def tracker(start: Callable[..., Any]) -> str:
    address: str = start("tracker").address
    return address


def product(size: int) -> Any:
    """A matrix product, as MetaSchedule's builder would leave it."""
    import tvm
    from tvm import te

    left, right = (te.placeholder((size, size), name=name) for name in "ab")
    k = te.reduce_axis((0, size))
    out = te.compute((size, size), lambda i, j: te.sum(left[i, k] * right[k, j], axis=k))
    function = te.create_prim_func([left, right, out]).with_attr("global_symbol", "main")
    return tvm.compile(tvm.IRModule({"main": function}), target="llvm")


@pytest.fixture(scope="module")
def candidates(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    from tvm.s_tir.meta_schedule.arg_info import TensorInfo
    from tvm.s_tir.meta_schedule.runner import RunnerInput

    folder = tmp_path_factory.mktemp("candidates")
    inputs = []
    for size in (32, 48, 64):
        path = folder / f"{size}.so"
        product(size).export_library(str(path))
        inputs.append(RunnerInput(str(path), "cpu", [TensorInfo("float32", (size, size))] * 3))
    return inputs


@pytest.fixture
def two_servers(start: Callable[..., Any], tracker: str, request: Any) -> Iterator[list[Any]]:
    """Two servers whose key is the test's name."""
    key = request.node.name
    servers = [start("server", "--rpc-tracker", tracker, "--rpc-key", key) for _ in range(2)]
    client = Tracker(Address.parse(tracker))
    while sum(len(known.addresses) for known in client.devices() if known.key == key) < 2:
        pass
    yield servers
    for server in servers:
        if server.process.poll() is None:
            server.stop()


@contextlib.contextmanager
def devices(tracker: str, key: str, **options: Any) -> Iterator[Any]:
    from tvm_mobilenet.remote.runner import runner

    with contextlib.closing(runner(tracker, key, **options)) as opened:
        yield opened


def busy(server: Any) -> bool:
    import psutil

    return bool(psutil.Process(server.process.pid).children())


def library(source: str, folder: Path) -> Path:
    (folder / "candidate.cc").write_text(source)
    command = [
        "g++",
        "-shared",
        "-fPIC",
        "-w",
        "-o",
        folder / "candidate.so",
        folder / "candidate.cc",
    ]
    subprocess.run(command, check=True)
    return folder / "candidate.so"


def test_a_killed_server_costs_no_candidate_and_is_reported(
    tracker: str, two_servers: list[Any], candidates: list[Any], request: Any
) -> None:
    from tvm.s_tir.meta_schedule.runner import EvaluatorConfig

    losses: list[str] = []
    long = EvaluatorConfig(number=1, repeat=3, min_repeat_ms=400)  # at least 1.2 s each
    with devices(
        tracker, request.node.name, evaluator_config=long, on_loss=losses.append, timeout_sec=120
    ) as runner:
        futures = runner.run(candidates * 2)
        assert len(futures) == 6
        victim, survivor = two_servers
        # its first session: one that has given its result, and is not gone yet, loses nothing
        while not any(victim.log.parent.glob("*/*.so")):
            assert not all(future.done() for future in futures)
        victim.process.send_signal(signal.SIGKILL)
        results = [future.result() for future in futures]
    assert [result.error_msg for result in results] == [None] * 6
    for result in results:
        times = [float(seconds) for seconds in result.run_secs]
        assert len(times) == 3
        assert all(0 < seconds < 1 for seconds in times)
    (loss,) = losses
    assert loss.startswith(f"{victim.address}: connection lost (")
    assert survivor.process.poll() is None


@pytest.mark.needs_tool("g++", "g++")
def test_a_crash_and_a_hang_cost_themselves_alone(
    tracker: str, two_servers: list[Any], candidates: list[Any], tmp_path: Path, request: Any
) -> None:
    from tvm.s_tir.meta_schedule.runner import RunnerInput

    folders = [tmp_path / name for name in ("crash", "hang", "broken")]
    for folder in folders:
        folder.mkdir()
    crash, hang = (library(*pair) for pair in zip((CRASH, HANG), folders, strict=False))
    broken = folders[2] / "broken.so"
    broken.write_bytes(b"no library")
    bad = [RunnerInput(str(path), "cpu", []) for path in (crash, hang, broken)]
    with devices(tracker, request.node.name, timeout_sec=5, on_loss=lambda line: None) as runner:
        crashed, hung, refused, *good = [
            future.result() for future in runner.run([*bad, *candidates])
        ]
    assert crashed.run_secs is None
    assert "the candidate crashes there" in crashed.error_msg
    assert crashed.error_msg.count("connection lost") == 2  # it was tried again
    assert hung.run_secs is None
    assert "stopped after 5 s" in hung.error_msg
    assert refused.run_secs is None
    assert "127.0.0.1:" in refused.error_msg and "load" in refused.error_msg
    assert [result.error_msg for result in good] == [None] * 3
    for server in two_servers:  # alive, and nothing of the candidates is left
        assert server.process.poll() is None
        assert server.stop() == 0
        assert [entry for entry in server.log.parent.iterdir() if entry.is_dir()] == []
    assert all(path.is_file() for path in (crash, hang, broken))  # here they are left alone


def test_when_no_device_is_left_it_says_so(
    tracker: str,
    two_servers: list[Any],
    candidates: list[Any],
    request: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from tvm_mobilenet.remote import tracker as tracker_module

    monkeypatch.setattr(tracker_module, "_GONE_SECONDS", 1.0)
    with devices(tracker, request.node.name) as runner:
        for server in two_servers:
            assert server.stop() == 0
        (result,) = (future.result() for future in runner.run(candidates[:1]))
    assert result.run_secs is None
    assert f"no device of key '{request.node.name}' left" in result.error_msg
    with pytest.raises(InputError, match="no device of key"), devices(tracker, "unknown"):
        pass


def test_a_closed_runner_frees_its_devices(
    tracker: str, two_servers: list[Any], candidates: list[Any], request: Any
) -> None:
    from tvm.s_tir.meta_schedule.runner import EvaluatorConfig

    long = EvaluatorConfig(number=1, repeat=100, min_repeat_ms=1000)
    with devices(tracker, request.node.name, evaluator_config=long, timeout_sec=300) as runner:
        futures = runner.run(candidates)
        while not all(busy(server) for server in two_servers):
            pass
    for future in futures:
        assert future.result().run_secs is None
        assert future.result().error_msg
    give_up = time.monotonic() + 60  # the work that was asked for takes longer
    while any(busy(server) for server in two_servers):
        assert time.monotonic() < give_up


def test_metaschedule_takes_it_for_a_runner(
    tracker: str, two_servers: list[Any], request: Any
) -> None:
    from tvm.s_tir.meta_schedule.runner import Runner

    with devices(tracker, request.node.name) as runner:
        assert isinstance(runner, Runner)
        assert list(Runner.run(runner, [])) == []


def test_arguments_are_the_same_each_time_and_no_special_values() -> None:
    import numpy as np

    asked = [((3, 4), "float32"), ((5,), "int8"), ((2, 2), "float16")]
    once, again = values(asked), values(asked)
    for (shape, dtype), array, same in zip(asked, once, again, strict=True):
        assert array.shape == shape and array.dtype == dtype
        np.testing.assert_array_equal(array, same)
    assert np.abs(once[0]).min() > 1e-30
