"""Another kind of machine's runner under QEMU's user mode: its outputs, and its instructions."""

from __future__ import annotations

import itertools
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tvm_mobilenet.deploy.toolchain import own_c
from tvm_mobilenet.errors import InputError, MissingToolError, ParityError
from tvm_mobilenet.parity import ParityReport, Sample, judge
from tvm_mobilenet.parity.samples import save_samples
from tvm_mobilenet.runtime import host, manifest

if TYPE_CHECKING:
    import numpy as np

    from tvm_mobilenet.targets import TargetSpec

RUNNER = "bin/runner"  # its place in a bundle
_QEMU = {"aarch64": "qemu-aarch64", "armv7": "qemu-arm", "x86_64": "qemu-x86_64"}
_PARITY_FAILED = 5  # the runner's exit code
_PLUGIN = Path(__file__).parent / "instructions.c"


@dataclass(frozen=True)
class Instructions:
    """Executed instructions of one inference on one thread, and of each operator in order."""

    total: int
    operators: tuple[int, ...]


def emulator(mtriple: str, qemu_cpu: str) -> tuple[str, ...]:
    """QEMU's command that runs a static program as on that core.

    `-cpu` is set, so that an instruction beyond the core's traps. Raises MissingToolError when QEMU
    is not installed or has no model of such a core.
    """
    program = _QEMU.get(host.architecture(mtriple))
    if program is None or not qemu_cpu:
        raise MissingToolError("QEMU's name of this core is not known")
    if "android" in mtriple:
        raise MissingToolError("QEMU's user mode has no Android to run the program in")
    if shutil.which(program) is None:
        raise MissingToolError(f"{program} is missing (apt-get install qemu-user)")
    return program, "-cpu", qemu_cpu


def prove(runner: Path, target: TargetSpec, references: Sequence[Sample]) -> ParityReport:
    """Judge the runner's outputs under QEMU; without QEMU the report says how the board does it.

    Raises ParityError when the program is ended by a signal, as by an instruction that the core
    lacks.
    """
    try:
        command = emulator(target.mtriple, target.qemu_cpu)
    except MissingToolError as error:
        on_board = f"unproven on this machine; on the board, {RUNNER} proves it"
        return ParityReport((), 0, not_checked=f"{error}; {on_board}")
    with tempfile.TemporaryDirectory(prefix="tvm-mobilenet-") as folder:
        samples, outputs = Path(folder) / "samples.npz", Path(folder) / "outputs"
        save_samples(samples, references)
        options = ("--no-verify", "--samples", samples, "--outputs", outputs)  # not sealed yet
        run([*command, runner, *options])
        results = _split(outputs, references)
    report = judge(results, references)
    return ParityReport(report.outputs, report.samples, machine=" ".join(command))


def count_instructions(bundle: Path) -> Instructions:
    """Count what a bundle's runner executes on its core under QEMU; the same in every run.

    The count is of user-mode instructions: a proxy for time that knows no caches and no latency.
    Raises InputError for a bundle without a runner for another kind of machine, MissingToolError.
    """
    described = manifest.read(bundle).document
    target, operators = described["target"], described["operators"]
    runner = bundle / RUNNER
    if not runner.is_file():
        raise InputError(f"{bundle}: has no {RUNNER}: instructions are counted of cross builds")
    command = emulator(target["mtriple"], target.get("qemu_cpu", ""))
    samples = ("--no-verify", "--samples", bundle / manifest.SAMPLES)
    *counter, _ = executed(command, runner, *samples, "--threads", "1", "--only", "3")
    places = len(operators) + 1  # a note before each operator and one behind the last
    if len(counter) != 3 * places:
        raise InputError(f"{bundle}: {len(counter)} notes of the plugin, {3 * places} expected")
    # the third inference: the first ones fill tables of the dynamic linker and the C library
    last = counter[-places:]
    each = tuple(after - before for before, after in itertools.pairwise(last))
    return Instructions((counter[-1] - counter[places - 1]) // 2, each)


def executed(machine: Sequence[object], *program: object) -> list[int]:
    """Instructions that a program has executed at every `operator_begins`, and at its end.

    machine: QEMU's command, and what stands in front of it. Raises as `count_instructions`.
    """
    with tempfile.TemporaryDirectory(prefix="tvm-mobilenet-") as folder:
        plugin, notes = Path(folder) / "instructions.so", Path(folder) / "notes"
        compile_plugin(plugin)
        run([*machine, "-plugin", f"{plugin},out={notes}", *program])
        return [int(line) for line in notes.read_text().split()]


def compile_plugin(output: Path, source: Path = _PLUGIN) -> None:
    """A plugin for QEMU of its C source. Raises MissingToolError."""
    own_c().run("-O2", "-shared", "-fPIC", "-o", output, source)


def run(command: Sequence[object]) -> None:
    """A guest's program. Raises ParityError when a signal ends it, InputError when it fails."""
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    machine = " ".join(words[:3])
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        raise ParityError(f"the runner ended with {name} under {machine}")
    if done.returncode not in (0, _PARITY_FAILED):
        raise InputError(f"the runner failed under {machine}: {done.stderr.strip()}")


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
