"""The server without Python: on this machine, and for aarch64 under QEMU."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import tvm_mobilenet as tm
from tvm_mobilenet.errors import InputError, MissingToolError, NothingMeasuredError
from tvm_mobilenet.parity.samples import Sample, load_samples
from tvm_mobilenet.remote.errors import OvertimeError
from tvm_mobilenet.remote.native import package_server
from tvm_mobilenet.remote.network import run_network
from tvm_mobilenet.remote.process import Process
from tvm_mobilenet.remote.tracker import Address, Grant, Tracker

slow_rpc = [pytest.mark.slow, pytest.mark.rpc]
QEMU = ("qemu-aarch64", "-cpu", "cortex-a72", "-L", "/usr/aarch64-linux-gnu")


@contextlib.contextmanager
def serving(command: Sequence[object], folder: Path) -> Iterator[tuple[str, Any]]:
    """The server's address and its process; sessions' folders are made in `folder`."""
    process = subprocess.Popen(
        [*map(str, command), "--port", "0"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(folder)},
    )
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip(), process
    finally:
        process.terminate()
        process.wait(timeout=60)
        process.stdout.close()


def stored(bundle: Path) -> Sample:
    return load_samples(bundle / "samples.npz", ["picture"], ["scores", "mean"])[0]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return package_server("native", tmp_path_factory.mktemp("package") / "server")


def test_an_output_that_exists_is_left_alone(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="exists; choose another output"):
        package_server("native", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_runtime_that_lacks_a_library_or_has_no_wheel(tmp_path: Path) -> None:
    (tmp_path / "libtvm_runtime.so").touch()
    with pytest.raises(InputError, match=r"has no libtvm_ffi\.so"):
        package_server("native", tmp_path / "out", runtime=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["libtvm_runtime.so"]


@pytest.mark.needs_tool("arm-linux-gnueabihf-g++", "g++-arm-linux-gnueabihf")
@pytest.mark.arm
def test_an_architecture_without_a_wheel(tmp_path: Path) -> None:
    with pytest.raises(MissingToolError, match="TVM has no wheel for armv7: build its runtime"):
        package_server("rpi2", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


class TestHere:
    pytestmark = slow_rpc

    def test_it_registers_runs_a_bundle_and_stops(
        self, package: Path, bundle: Path, start: Callable[..., Any], tmp_path: Path
    ) -> None:
        tracker = start("tracker").address
        client = Tracker(Address.parse(tracker))
        command = [package / "rpc_server", "--tracker", tracker, "--key", "board"]
        with serving(command, tmp_path) as (address, process):
            while not client.devices():
                pass
            for _ in range(2):  # it registers anew after a session
                result = tm.deploy(bundle, tracker=tracker, key="board", runs=3)  # type: ignore[operator]
                assert result.parity.passed
                assert result.device == address
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=60) == 0
        assert list(tmp_path.iterdir()) == []
        while client.devices():
            pass

    def test_a_session_ends_with_its_time_and_the_server_goes_on(
        self, package: Path, bundle: Path, tmp_path: Path
    ) -> None:
        command = [package / "rpc_server", "--key", "k"]
        with serving(command, tmp_path) as (address, process):
            with pytest.raises(NothingMeasuredError, match="stopped after 2 s"):
                tm.deploy(bundle, rpc=address, key="k", runs=50_000_000, timeout_sec=2)  # type: ignore[operator]
            with pytest.raises(NothingMeasuredError, match="connection lost"):
                tm.deploy(bundle, rpc=address, key="other")  # type: ignore[operator]
            with Process() as client, pytest.raises(OvertimeError):  # it vanishes amidst its work
                grant = Grant(Address.parse(address), "k")
                client.call(
                    run_network,
                    grant,
                    bundle / "model.so",
                    [list(stored(bundle).inputs.values())],
                    threads=1,
                    runs=50_000_000,
                    operators=None,
                    seconds=600,
                    timeout=3,
                )
            assert tm.deploy(bundle, rpc=address, key="k", runs=1, timeout_sec=60).parity.passed  # type: ignore[operator]
            assert process.poll() is None
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--key"], "--key needs a value"),
            (["--tracker", "127.0.0.1:1"], "needs --key KEY"),
            (["--key", "a b"], "a key has letters"),
            (["--what", "1"], "--what 1 is not understood"),
            (["--host", "192.0.2.1"], "192.0.2.1:9090: Cannot assign requested address"),
        ],
    )
    def test_refusals(self, package: Path, arguments: list[str], message: str) -> None:
        command = [package / "rpc_server", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        assert line.startswith("rpc_server: error: ") and message in line


@pytest.fixture(scope="module")
def board(
    start: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, str]]:
    """A tracker and the server's address: rpi4's processor under QEMU."""
    tracker = start("tracker").address
    folder = tmp_path_factory.mktemp("aarch64")
    server = package_server("rpi4", folder / "server") / "rpc_server"
    sessions = folder / "sessions"
    sessions.mkdir()
    command = [*QEMU, server, "--key", "rpi4", "--tracker", tracker]
    with serving(command, sessions) as (address, process):
        while not Tracker(Address.parse(tracker)).devices():
            pass
        yield tracker, address
        assert process.poll() is None
    assert list(sessions.iterdir()) == []


@pytest.mark.arm
@pytest.mark.needs_tool("qemu-aarch64", "qemu-user")
@pytest.mark.needs_tool("aarch64-linux-gnu-g++", "g++-aarch64-linux-gnu")
class TestAarch64:
    """A Cortex-A72 as QEMU models it: an instruction that the core lacks ends the session."""

    pytestmark = slow_rpc

    def test_a_cross_compiled_bundle_passes_parity_there(
        self, board: tuple[str, str], bundle: Path, tmp_path: Path
    ) -> None:
        from tvm_mobilenet import deploy

        built = deploy.build(bundle.parent / "small.onnx", target="rpi4", output=tmp_path / "rpi4")
        tracker, address = board
        result = tm.deploy(built.path, tracker=tracker, key="rpi4", threads=2, runs=3)  # type: ignore[operator]
        assert result.parity.passed
        assert result.parity.samples == 2
        assert result.device == address

    def test_this_machines_bundle_is_refused_there(
        self, board: tuple[str, str], bundle: Path
    ) -> None:
        with pytest.raises(NothingMeasuredError, match="Failed to load dynamic shared library"):
            tm.deploy(bundle, tracker=board[0], key="rpi4")  # type: ignore[operator]

    def test_a_cross_compiled_candidate_is_measured_there(
        self, board: tuple[str, str], tmp_path: Path
    ) -> None:
        import tvm
        from tvm import te
        from tvm.s_tir.meta_schedule.arg_info import TensorInfo
        from tvm.s_tir.meta_schedule.runner import RunnerInput

        from tvm_mobilenet import targets
        from tvm_mobilenet.deploy import toolchain
        from tvm_mobilenet.remote.runner import runner

        spec = targets.load("rpi4")
        source = te.placeholder((64,), name="a")
        doubled = te.compute((64,), lambda i: source[i] * 2)
        function = te.create_prim_func([source, doubled]).with_attr("global_symbol", "main")
        library = str(tmp_path / "candidate.so")
        module = tvm.compile(tvm.IRModule({"main": function}), target=spec.tvm_target())
        module.export_library(library, fcompile=toolchain.find(spec).link_library)
        with contextlib.closing(runner(board[0], "rpi4", threads=1, timeout_sec=60)) as devices:
            entry = RunnerInput(library, "cpu", [TensorInfo("float32", (64,))] * 2)
            (result,) = (future.result() for future in devices.run([entry]))
        assert result.error_msg is None
        assert all(0 < float(seconds) < 1 for seconds in result.run_secs)
