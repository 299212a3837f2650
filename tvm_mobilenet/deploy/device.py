"""The C++ runner for another kind of machine: one static program with weights and kernels in it."""

from __future__ import annotations

import importlib.util
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tvm_mobilenet.deploy.network import plan, write_sources
from tvm_mobilenet.errors import InputError, MissingToolError, ParityError
from tvm_mobilenet.parity import ParityReport, Sample, judge
from tvm_mobilenet.parity.samples import save_samples
from tvm_mobilenet.runtime import host

if TYPE_CHECKING:
    import numpy as np

    from tvm_mobilenet.compiler_pass.pipeline import Compiled
    from tvm_mobilenet.deploy.toolchain import Toolchain
    from tvm_mobilenet.targets import TargetSpec

_HERE = Path(__file__).parent
_SOURCES = ("runner.cc", "runtime.cc")
_QEMU = {"aarch64": "qemu-aarch64", "armv7": "qemu-arm", "x86_64": "qemu-x86_64"}
_PARITY_FAILED = 5  # the runner's exit code


@dataclass(frozen=True)
class Runner:
    """The program, and the first line that its compiler says of itself."""

    path: Path
    toolchain: str


def build_runner(
    compiled: Compiled,
    objects: Path,
    toolchain: Toolchain,
    directory: Path,
    *,
    threads: int | None = None,
) -> Runner:
    """Compile and link `directory`/runner for the compiled model's device.

    objects: the directory with the model's object files, of which those with kernels are linked.
    Raises InputError when the compiler fails, MissingToolError when tvm_ffi has no headers.
    """
    output = directory / "runner"
    # Android's dynamic linker takes position-independent programs only
    form = ("-pie",) if "android" in compiled.target.mtriple else ("-static", "-no-pie")
    headers = (_HERE / "standalone", _HERE / "runner", _ffi_headers())
    with tempfile.TemporaryDirectory(prefix="tvm-mobilenet-") as folder:
        place = Path(folder)
        write_sources(plan(compiled.planned), compiled, place, threads or 0)
        toolchain.run(
            *("-std=c++17", "-O2", "-pthread", *form),
            *(f"-I{path}" for path in headers),
            *(_HERE / "standalone" / name for name in _SOURCES),
            *("network.cc", "weights.s"),
            *sorted(objects.glob("lib*.o")),
            *("-lm", "-o", output),
            cwd=place,
        )
    return Runner(output, toolchain.version)


def emulator(target: TargetSpec) -> tuple[str, ...]:
    """QEMU's command that runs a static program as on the target's core.

    `-cpu` is set, so that an instruction beyond the core's traps. Raises MissingToolError when QEMU
    is not installed or has no model of such a core.
    """
    program = _QEMU.get(host.architecture(target.mtriple), "qemu-?")
    if not target.qemu_cpu:
        raise MissingToolError(f"QEMU has no model of {target.name}'s core")
    if "android" in target.mtriple:
        raise MissingToolError("QEMU's user mode has no Android to run the program in")
    if shutil.which(program) is None:
        raise MissingToolError(f"{program} is missing (apt-get install qemu-user)")
    return program, "-cpu", target.qemu_cpu


def prove(runner: Runner, target: TargetSpec, references: Sequence[Sample]) -> ParityReport:
    """Judge the runner's outputs under QEMU; without QEMU the report says how the board does it.

    Raises ParityError when the program is ended by a signal, as by an instruction that the core
    lacks.
    """
    try:
        command = emulator(target)
    except MissingToolError as error:
        on_board = "unproven on this machine; on the board, bin/runner proves it"
        return ParityReport((), 0, not_checked=f"{error}; {on_board}")
    with tempfile.TemporaryDirectory(prefix="tvm-mobilenet-") as folder:
        samples, outputs = Path(folder) / "samples.npz", Path(folder) / "outputs"
        save_samples(samples, references)
        done = subprocess.run(
            [*command, runner.path, "--samples", samples, "--outputs", outputs],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode < 0:
            name = signal.Signals(-done.returncode).name
            raise ParityError(f"the runner ended with {name} under {' '.join(command)}")
        if done.returncode not in (0, _PARITY_FAILED):
            raise InputError(f"the runner failed under {' '.join(command)}: {done.stderr.strip()}")
        results = _split(outputs, references)
    report = judge(results, references)
    return ParityReport(report.outputs, report.samples, machine=" ".join(command))


def _split(file: Path, references: Sequence[Sample]) -> list[Mapping[str, np.ndarray]]:
    """The runner's raw float32 as one mapping for each sample."""
    import numpy as np

    values = np.fromfile(file, np.float32)
    results: list[Mapping[str, np.ndarray]] = []
    start = 0
    for sample in references:
        outputs = {}
        for name, exact in sample.float64.items():
            outputs[name] = values[start : start + exact.size].reshape(exact.shape)
            start += exact.size
        results.append(outputs)
    return results


def readme(compiled: Compiled, parity: ParityReport, name: str) -> str:
    """README.md of a bundle for another kind of machine: what to copy there, and what to run."""
    target, model = compiled.target, compiled.imported.name
    proof = (
        f"It was proven before it was written: {parity.summary()}."
        if parity.checked
        else f"**It is unproven**: {parity.summary()}. Do not use it before the first command "
        "below has passed on the board."
    )
    return f"""# {model} for {target.name}

{target.description}. {proof}

Copy `bin/runner` and `samples.npz` to the board; nothing else is needed there:

    ssh BOARD mkdir -p {name}/bin
    scp bin/runner BOARD:{name}/bin/ && scp samples.npz BOARD:{name}/

Run on the board, the first to prove it equal to PyTorch there, the second to time it:

    {name}/bin/runner
    {name}/bin/runner --threads {target.cores} --repeat 100

Exit code 0: passed; 5: the outputs are wrong; 3: it cannot run there, with the reason.

`model.so` is the same code for TVM's runtime (Python, RPC, or an own program, built as `runner/`
is); `manifest.json` says what every file is.
"""


def _ffi_headers() -> Path:
    package = importlib.util.find_spec("tvm_ffi")
    for directory in package.submodule_search_locations or () if package else ():
        headers = Path(directory) / "include"
        if headers.is_dir():
            return headers
    raise MissingToolError("tvm_ffi's headers are missing; run: pip install apache-tvm-ffi")
