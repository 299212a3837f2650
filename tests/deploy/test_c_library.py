"""The C library of a cross build under QEMU, and batches through its interface on every machine."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import onnx
import pytest

from tvm_mobilenet import deploy
from tvm_mobilenet.errors import InputError

pytestmark = pytest.mark.slow
MODEL = """<ir_version: 10, opset_import: ["" : 18]>
small (float[N,3,16,16] x) => (float[N,16] y) {
    stem = Conv<strides=[2,2], pads=[1,1,1,1]>(x, w)
    active = Relu(stem)
    mean = GlobalAveragePool(active)
    y = Flatten(mean)
}"""
BATCHES = Path(__file__).with_name("c_batches.c")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import numpy as np

    made = onnx.parser.parse_model(MODEL)
    weight = np.random.default_rng(0).standard_normal((16, 3, 3, 3)).astype(np.float32)
    made.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    path = tmp_path_factory.mktemp("model") / "small.onnx"
    onnx.save(made, path)
    return path


def said(*command: object) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.arm
@pytest.mark.parametrize(
    ("target", "gnu", "qemu"),
    [
        ("rpi4", "aarch64-linux-gnu", ["qemu-aarch64", "-cpu", "cortex-a72"]),
        ("rpi2", "arm-linux-gnueabihf", ["qemu-arm", "-cpu", "cortex-a7"]),
    ],
)
def test_boards(model: Path, tmp_path: Path, target: str, gnu: str, qemu: Sequence[str]) -> None:
    bundle = tmp_path / "bundle"
    built = deploy.build(model, target=target, output=bundle, batches=(3,), c_library=True)
    assert built.parity.passed
    library = bundle / "lib/libtvm_mobilenet.so"
    machine = [shutil.which(qemu[0]), *qemu[1:], "-L", f"/usr/{gnu}"]
    run_time = f"-Wl,-rpath,{library.parent}"
    for source in (bundle / "runner/example.c", BATCHES):
        program = tmp_path / source.stem
        headers = f"-I{bundle / 'runner'}"
        said(
            f"{gnu}-gcc",
            "-Wall",
            "-Werror",
            headers,
            source,
            library,
            run_time,
            "-lm",
            "-o",
            program,
        )
    assert said(*machine, tmp_path / "example", "-").startswith("x: float32 of 3072 bytes\nclass ")
    assert said(*machine, tmp_path / "c_batches", "-", 7) == "1 3 alike\n"
    data = bytearray(library.read_bytes())
    data[len(data) // 2] ^= 1  # in the weights or the code: damage is found before it runs
    library.write_bytes(data)
    done = subprocess.run([*machine, tmp_path / "example", "-"], capture_output=True, text=True)
    assert done.returncode != 0
    assert "differs from what was built" in done.stderr or done.returncode < 0


@pytest.mark.needs_tool("cmake", "cmake")
@pytest.mark.needs_tool("g++", "g++")
def test_this_machine(model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="leave --c-library out"):
        deploy.build(model, output=tmp_path / "none", c_library=True)
    bundle, place = tmp_path / "bundle", tmp_path / "cmake"
    deploy.build(model, output=bundle, batches=(3,), threads=1)
    said("cmake", "-S", bundle / "runner", "-B", place, f"-DPython_EXECUTABLE={sys.executable}")
    said("cmake", "--build", place)
    assert "parity passed on 3 samples" in said(place / "runner")
    assert "latency" in said(place / "runner", "--bench", 3, "--batch", 3)
    library = place / "libtvm_mobilenet.so"
    program = tmp_path / "batches"
    headers, run_time = f"-I{bundle / 'runner'}", f"-Wl,-rpath,{place}"
    said("gcc", headers, BATCHES, library, run_time, "-lm", "-o", program)
    assert said(program, bundle, 7) == "1 3 alike\n"
