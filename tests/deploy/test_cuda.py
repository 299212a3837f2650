"""Bundles for GPUs on a machine without one: what is in them, and the way to the driver.

`fake_driver.c` stands in for the driver and CUDA's runtime library where a test goes further.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cuda import pathfinder

from tvm_mobilenet import deploy, frontend, targets
from tvm_mobilenet.cli.doctor_cuda import gpu_rows
from tvm_mobilenet.compiler_pass.pipeline import compile_model
from tvm_mobilenet.deploy import cuda
from tvm_mobilenet.errors import InputError, MissingToolError, UsageError
from tvm_mobilenet.parity import cuda_launches as parity_launches
from tvm_mobilenet.parity.cuda_bundle import run_bundle
from tvm_mobilenet.parity.cuda_emulate import KernelError
from tvm_mobilenet.profiling.static import occupancy, profile_static
from tvm_mobilenet.runtime import cuda as runtime_cuda
from tvm_mobilenet.runtime import manifest, nvrtc
from tvm_mobilenet.runtime.ptxas import Resources, compile_without_spills, parse_log

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
MEMORY = {"LDG", "STG", "LD", "ST", "ATOM", "ATOMG", "RED", "LDGSTS"}  # of the GPU's, not shared
FAKE = Path(__file__).with_name("fake_driver.c")
RUN_THRICE = """
import sys
import numpy as np
from tvm_mobilenet.runtime import Bundle
with Bundle.load(sys.argv[1]) as bundle:
    x = np.ones(bundle.inputs[0].shape, "float32")
    for _ in range(3):
        assert bundle.run(x).shape == bundle.outputs[0].shape
assert not {"tvm", "torch", "onnx"} & set(sys.modules)
"""


@pytest.fixture(scope="session")
def gpu_bundle(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network for sm_80 and sm_90."""
    output = tmp_path_factory.mktemp("gpu") / "small"
    deploy.build(model_path, target="cuda-sm90", arch=("sm_80", "sm_90"), output=output)
    return output


@pytest.fixture(scope="session")
def fake_libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """libcuda.so.1 and libcudart.so.13 made of the stand-in."""
    place = tmp_path_factory.mktemp("driver")
    (place / "versions").write_text("libcudart.so.13 { global: cuda*; };")  # as the real one's
    for name, options in (
        ("libcuda.so.1", []),
        ("libcudart.so.13", [f"-Wl,--version-script={place / 'versions'}"]),
    ):
        command = ["gcc", "-shared", "-fPIC", "-w", f"-Wl,-soname,{name}", *options]
        subprocess.run([*command, "-o", place / name, FAKE], check=True)
    return place


@pytest.fixture
def on_fake_gpu(fake_libraries: Path, tmp_path: Path) -> Callable[[Path, int], list[str]]:
    """on_fake_gpu(bundle, capability): three inferences; the driver's log, else stderr."""

    def run(bundle: Path, capability: int) -> list[str]:
        log = tmp_path / "log"
        log.unlink(missing_ok=True)
        environment = os.environ | {
            "LD_LIBRARY_PATH": str(fake_libraries),
            "FAKE_DRIVER_LOG": str(log),
            "FAKE_CAPABILITY": str(capability),
        }
        command = [sys.executable, "-c", RUN_THRICE, str(bundle)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        return log.read_text().splitlines() if done.returncode == 0 else [done.stderr]

    return run


def test_a_bundle_holds_source_cubins_and_ptx_proven_by_emulation(gpu_bundle: Path) -> None:
    contents = manifest.read(gpu_bundle)
    manifest.check_files(gpu_bundle, contents)
    names = {name for name in contents.files if name.startswith("cuda/")}
    images = {"cuda/sm_80.cubin", "cuda/sm_90.cubin", "cuda/compute_80.ptx"}
    assert names == {"cuda/kernels.cu", "cuda/kernels.json"} | images
    assert not any(name.startswith("runner/") for name in contents.files)
    assert contents.document["target"]["gpu"]["arch"] == "sm_90"
    parity = contents.document["parity"]
    assert parity["state"] == "passed" and "emulation" in parity["machine"]


def test_it_runs_up_to_the_driver_on_the_runtime_library_alone(gpu_bundle, on_fake_gpu) -> None:
    log = [line.split() for line in on_fake_gpu(gpu_bundle, 90)]
    expected = [
        [launch["kernel"], *map(str, launch["grid"]), *map(str, launch["block"]), "0"]
        for launch in cuda.read_kernels(gpu_bundle)["launches"]
    ]
    launched = [line[1:] for line in log if line[0] == "launch"]
    recorded = [line[1:] for line in log if line[0] == "record"]
    assert launched[: len(expected)] == expected
    assert recorded == [launch for launch in expected if launch in recorded]
    # what is in the graph is launched singly before it is recorded, never after
    rest = [launch for launch in expected if launch not in recorded]
    assert recorded and launched[len(expected) :] == 2 * rest
    assert [line for line in log if line[0] == "graph"] == 2 * [["graph", str(len(recorded))]]
    assert [line for line in log if line[0] == "image"] == [["image", "cubin"]]


def test_programmatic_launches_wait_before_they_read(
    model_path: Path, on_fake_gpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a kernel reads or writes, it has waited for the kernels before it."""
    device = tmp_path / "early.toml"
    device.write_text(
        f"{targets.load('cuda-sm90').to_toml(defaults=False)}programmatic_launch = true"
    )
    with pytest.raises(InputError, match=r"--arch sm_80: .*programmatic_launch, which needs sm_90"):
        deploy.build(model_path, target=str(device), arch=("sm_80",), output=tmp_path / "old")
    output = tmp_path / "early"
    deploy.build(model_path, target=str(device), output=output)
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    cubin = (output / "cuda" / "sm_90.cubin").read_bytes()
    kernels = importlib.import_module("cuda_instructions").disassemble(cubin)
    for code in kernels.values():
        memory = [i for i, name in enumerate(code.instructions) if name in MEMORY]
        assert memory and code.instructions.index("ACQBULK") < memory[0]  # griddepcontrol.wait
    log = on_fake_gpu(output, 90)
    launches = [line for line in log if line.startswith(("launch", "record"))]
    assert len(launches) >= len(kernels) and all(line.endswith(" early") for line in launches)
    (error,) = on_fake_gpu(output, 80)
    assert "programmatic launches need sm_90" in error.splitlines()[-1]


@pytest.mark.parametrize(("capability", "image"), [(80, "cubin"), (120, "ptx"), (75, "cubin")])
def test_other_gpus_get_their_code(gpu_bundle, on_fake_gpu, capability, image) -> None:
    assert f"image {image}" in on_fake_gpu(gpu_bundle, capability)


def test_a_gpu_that_nothing_compiles_for(gpu_bundle: Path, on_fake_gpu) -> None:
    (error,) = on_fake_gpu(gpu_bundle, 61)
    assert "has code for sm_80, sm_90, this GPU is sm_61, and NVRTC 13" in error.splitlines()[-1]


def test_machine_code_is_that_of_the_architecture(gpu_bundle: Path) -> None:
    place = gpu_bundle / "cuda"
    code = runtime_cuda.machine_code
    assert code(place, 90) == (place / "sm_90.cubin").read_bytes()
    assert code(place, 80) == (place / "sm_80.cubin").read_bytes() != code(place, 90)
    assert code(place, 100).rstrip(b"\0") == (place / "compute_80.ptx").read_bytes().rstrip(b"\0")
    assert b".target sm_80" in code(place, 86)


def test_without_nvrtc_an_older_gpu_is_told_so(gpu_bundle: Path, monkeypatch) -> None:
    def absent() -> None:
        raise MissingToolError("libnvrtc was not found; run: pip install it")

    monkeypatch.setattr(nvrtc, "_nvrtc", absent)
    with pytest.raises(InputError, match=r"this GPU is sm_75, and libnvrtc was not found.*--arch"):
        runtime_cuda.machine_code(gpu_bundle / "cuda", 75)
    with pytest.raises(MissingToolError, match="libnvrtc"):
        cuda.check_options(targets.load("cuda-sm90"), None, "float32")


def test_headers_that_were_only_put_on_the_path_are_found(monkeypatch, tmp_path: Path) -> None:
    assert len(nvrtc.include_directories()) == 2  # its modules are imported now
    monkeypatch.setattr(pathfinder, "find_nvidia_header_directory", lambda library: None)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(MissingToolError, match="headers of CUDA's cudart are missing; run: pip"):
        nvrtc.include_directories()
    carried = tmp_path / "nvidia" / "cu13" / "include"
    (carried / "cccl").mkdir(parents=True)
    assert nvrtc.include_directories() == [carried, carried / "cccl"]


@pytest.mark.skipif(bool(shutil.which("nvidia-smi")), reason="hardware: a GPU is here")
@pytest.mark.parametrize(
    "arguments",
    [("run", "BUNDLE", "picture.npy"), ("profile", "BUNDLE")],
)
def test_commands_without_a_driver(cli, gpu_bundle: Path, arguments) -> None:
    done = cli(*(gpu_bundle if word == "BUNDLE" else word for word in arguments))
    errors = [line for line in done.stderr.splitlines() if "error" in line]
    assert (done.returncode, done.stdout) == (3, "")
    assert len(errors) == 1
    assert "was built for cuda-sm90, but this machine has no NVIDIA driver" in errors[0]


@pytest.mark.parametrize(
    ("target", "arch", "precision", "error", "says"),
    [
        ("x86-64-v3", ("sm_90",), "float32", UsageError, "--arch goes with a GPU"),
        ("x86-64-v3", None, "tf32", UsageError, "--precision goes with a GPU"),
        ("cuda-sm90", ("sm_61",), "float32", InputError, "does not compile for 'sm_61'; it knows"),
        ("cuda-sm90", ("volta",), "float32", InputError, "does not compile for 'volta'"),
        ("cuda-sm75", None, "tf32", InputError, "cuda-sm75 has no tensor cores for tf32"),
        ("cuda-sm90", None, "int8", UsageError, "precision must be one of"),
    ],
)
def test_options_that_do_not_go_together(target, arch, precision, error, says) -> None:
    with pytest.raises(error, match=says):
        cuda.check_options(targets.load(target), arch, precision)


@pytest.mark.parametrize("name", [n for n in targets.names() if targets.load(n).gpu])
def test_nvrtc_compiles_for_every_target(name: str) -> None:
    arch = targets.load(name).gpu.arch
    image = nvrtc.compile_source('extern "C" __global__ void k(float* x) { *x = 1.0f; }', arch)
    assert image.code.startswith(b"\x7fELF")
    assert list(parse_log(image.log)) == ["k"]


def test_arithmetic_is_not_the_fast_kind() -> None:
    source = 'extern "C" __global__ void k(float* x) { x[0] = x[1] / x[2] + sqrtf(x[3]); }'
    text = nvrtc.compile_source(source, "compute_90").code
    assert b"div.rn.f32" in text and b"sqrt.rn.f32" in text and b".ftz" not in text


def test_source_that_does_not_compile_is_one_line() -> None:
    with pytest.raises(InputError, match=r"^NVRTC cannot compile for sm_90: kernels.cu\(1\)") as e:
        nvrtc.compile_source("__global__ void k() { oops(); }", "sm_90")
    assert "\n" not in str(e.value)


SPILLING = """extern "C" __global__ void __launch_bounds__(1024, 2) k(float* x) {
  float a[80];
  for (int i = 0; i < 80; ++i) a[i] = x[i * 4096 + threadIdx.x];
  __syncthreads();
  for (int j = 0; j < 80; ++j) { float s = 0;
#pragma unroll
    for (int i = 0; i < 80; ++i) s += a[i] * x[i * j];
    x[j * 4096 + threadIdx.x] = s; }
}"""


def test_spills_are_read_from_the_log() -> None:
    (used,) = parse_log(nvrtc.compile_source(SPILLING, "sm_90").log).values()
    assert used.registers <= 32 and used.stack_bytes > 0 and used.spills
    text = (
        "ptxas info : Compiling entry function 'f' for 'sm_90'\n"
        "    24 bytes stack frame, 20 bytes spill stores, 16 bytes spill loads\n"
        "ptxas info : Used 255 registers, used 1 barriers, 4096 bytes smem, 400 bytes cmem[0]\n"
    )
    assert parse_log(text) == {"f": Resources(255, 24, 20, 16, 4096)}


OTHER = 'extern "C" __global__ void __launch_bounds__(64, 8) small(float* x) { *x = 1; }'


def test_a_kernel_that_spills_gets_the_registers_of_fewer_blocks() -> None:
    source = f"{SPILLING.replace('1024, 2', '256, 8')}\n{OTHER}"
    assert parse_log(nvrtc.compile_source(source, "sm_90").log)["k"].spills
    compiled, image = compile_without_spills(source, "sm_90")
    assert not any(used.spills for used in parse_log(image.log).values()) and OTHER in compiled
    blocks = int(compiled.split("__launch_bounds__(256, ")[1].partition(")")[0])
    more = compiled.replace(f"(256, {blocks})", f"(256, {blocks + 1})")
    assert parse_log(nvrtc.compile_source(more, "sm_90").log)["k"].spills


def test_a_kernel_that_spills_alone_keeps_its_blocks() -> None:
    """A thread of 1024 has 64 registers at most, too few for this kernel."""
    source = f"{SPILLING}\n{OTHER}"
    compiled, image = compile_without_spills(source, "sm_90")
    assert compiled == source and parse_log(image.log)["k"].spills


def test_what_spills_nevertheless_is_told(
    model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parity_launches, "cuda_source", lambda executable: SPILLING)
    target = targets.load("cuda-sm90")
    with cuda.source_only(target):
        compiled = compile_model(frontend.load_model(str(model_path)), target)
    told: list[str] = []
    cuda.assemble(compiled, ("sm_90",), progress=told.append)
    assert "sm_90: registers spill in k; 'tune' may find better knobs" in told


@pytest.mark.parametrize(
    ("target", "threads", "registers", "shared", "blocks", "limit", "share"),
    [  # worked out by hand from the tables of NVIDIA's occupancy calculator
        ("cuda-sm80", 256, 32, 0, 8, "threads", 1.0),
        ("cuda-sm80", 256, 64, 0, 4, "registers", 0.5),
        ("cuda-sm80", 256, 33, 0, 6, "registers", 0.75),
        ("cuda-sm80", 32, 16, 0, 32, "blocks", 0.5),
        ("cuda-sm90", 128, 32, 100 * 1024, 2, "shared", 0.125),
        ("cuda-sm86", 1024, 40, 0, 1, "threads", 2 / 3),
        ("cuda-sm75", 256, 32, 32 * 1024, 2, "shared", 0.5),
        ("cuda-sm90", 1024, 255, 0, 0, "registers", 0.0),
    ],
)
def test_occupancy(target, threads, registers, shared, blocks, limit, share) -> None:
    found = occupancy(threads, registers, shared, targets.load(target).gpu)
    assert (found.blocks_per_sm, found.limit) == (blocks, limit)
    assert found.share == pytest.approx(share)


def test_static_profile_of_a_bundle(cli, gpu_bundle: Path, built: Path, tmp_path: Path) -> None:
    table = tmp_path / "kernels.csv"
    done = cli("profile", gpu_bundle, "--static", "--json", "--csv", table)
    document = json.loads(done.stdout)
    kernels = document["kernels"]
    assert {kernel["arch"] for kernel in kernels} == {"sm_80", "sm_90"}
    assert document["launches"] == sum(k["launches"] for k in kernels if k["arch"] == "sm_90")
    assert all(kernel["spill_bytes"] == 0 and 0 < kernel["occupancy"] <= 1 for kernel in kernels)
    assert len(table.read_text().splitlines()) == len(kernels) + 1
    assert profile_static(gpu_bundle, ["sm_80"]).kernels[0].arch == "sm_80"
    with pytest.raises(InputError, match="has no code for sm_75"):
        profile_static(gpu_bundle, ["sm_75"])
    with pytest.raises(InputError, match="not a bundle for a GPU"):
        profile_static(built)


def test_doctor_looks_for_the_compiler_and_a_gpu(monkeypatch) -> None:
    rows = {name: row for name, *row in gpu_rows(targets.load("cuda-sm90"))}
    assert rows["NVRTC"][1:] == [True, f"{nvrtc.version()}, compiles for sm_90", "", ""]
    assert "nvidia" in rows["CUDA headers"][2] and not rows["NVIDIA GPU"][1]

    def absent() -> None:
        raise MissingToolError("cuda-bindings is missing; run: pip install it")

    monkeypatch.setattr(nvrtc, "_nvrtc", absent)
    rows = {name: row for name, *row in gpu_rows(targets.load("cuda-sm90"))}
    assert rows["NVRTC"][1:] == [True, "", "cuda-bindings is missing", "pip install it"]


@pytest.mark.slow
@pytest.mark.skipif(bool(shutil.which("nvidia-smi")), reason="hardware: a GPU is here")
def test_a_bundle_is_validated_by_emulation_where_there_is_no_gpu(
    cli, gpu_bundle: Path, model_path: Path
) -> None:
    options = ("--model", model_path, "--samples", "1", "--per-layer", "--json")
    done = cli("validate", gpu_bundle, *options)
    assert done.returncode == 0, done.stderr
    parity = json.loads(done.stdout)["parity"]
    assert parity["state"] == "passed" and "emulation" in parity["machine"]
    assert len(parity["layers"]["operators"]) == len(
        manifest.read(gpu_bundle).document["operators"]
    )
    assert "no GPU (this machine has no NVIDIA driver" in done.stderr
    assert "the kernels run emulated on the CPU" in done.stderr
    assert "emulated 3 of 3" in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(bool(shutil.which("nvidia-smi")), reason="hardware: a GPU is here")
def test_emulation_runs_the_bundle_s_own_kernels(gpu_bundle: Path, tmp_path: Path) -> None:
    """What another source computes, or breaks, shows: nothing is taken from a compiler's memory."""
    copy = Path(shutil.copytree(gpu_bundle, tmp_path / "bundle"))
    source = copy / "cuda" / "kernels.cu"
    text = source.read_text("utf-8")
    (inputs,) = [{"picture": np.ones((1, 3, 16, 16), np.float32)}]
    (right, again) = run_bundle(copy, [inputs, inputs], print)  # the second is a CUDA graph
    np.testing.assert_array_equal(right["result"], again["result"])

    before, store, after = text.rpartition("y_ptr[")  # of the last kernel
    negated = after.replace("sums_ptr[0]", "- sums_ptr[0]")
    assert len(negated) == len(after) + 2  # blanks make up for it: the size of the file is checked
    source.write_text(f"{before}{store}{negated}".replace("\n  ", "\n", 1), "utf-8")
    (wrong,) = run_bundle(copy, [inputs], print)
    np.testing.assert_array_equal(wrong["result"], -right["result"])

    source.write_text(f"{before}{store}1000000 + {after}".replace("\n  ", "\n", 5), "utf-8")
    with pytest.raises(
        KernelError, match=r"kernel dense_\w+, block .*: writes 4 bytes .*\(line \d+"
    ):
        run_bundle(copy, [inputs], print)


@pytest.mark.slow
def test_where_there_is_a_gpu_it_is_the_judge(
    cli, model_path: Path, fake_libraries: Path, tmp_path: Path
) -> None:
    environment = os.environ | {
        "LD_LIBRARY_PATH": str(fake_libraries),
        "FAKE_DRIVER_LOG": str(tmp_path / "log"),
        "FAKE_CAPABILITY": "90",
    }
    output = tmp_path / "out"
    done = cli("build", model_path, "--target", "cuda-sm90", "-o", output, env=environment)
    # its kernels were launched, and nobody computed them
    assert done.returncode == 5 and "no bundle was written" in done.stderr
    assert "launch stem_0_kernel" in (tmp_path / "log").read_text()
    assert not output.exists()


@pytest.mark.slow
@pytest.mark.arm
@pytest.mark.needs_tool("aarch64-linux-gnu-g++", "g++-aarch64-linux-gnu")
def test_a_bundle_for_jetson_orin_has_an_arm_host(model_path: Path, tmp_path: Path) -> None:
    built = deploy.build(model_path, target="jetson-orin", output=tmp_path / "orin")
    assert (built.path / "cuda" / "sm_87.cubin").is_file()
    assert (built.path / "model.so").read_bytes()[18:20] == b"\xb7\x00"  # ELF's number of AArch64
    assert not (built.path / "bin").exists()
    with pytest.raises(InputError, match="aarch64"):
        from tvm_mobilenet.runtime import Bundle

        Bundle.load(built.path)
