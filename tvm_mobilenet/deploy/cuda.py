"""The GPU's part of a bundle: CUDA source, machine code for each architecture, PTX for newer ones.

Needs no GPU, driver or CUDA toolkit: NVRTC comes as a Python package (extra `cuda`).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvm_mobilenet import targets
from tvm_mobilenet.errors import InputError, UsageError
from tvm_mobilenet.runtime import cuda, nvrtc
from tvm_mobilenet.runtime.ptxas import compile_without_spills, parse_log

if TYPE_CHECKING:
    from tvm_mobilenet.compiler_pass.pipeline import Compiled
    from tvm_mobilenet.parity import ParityReport, Sample
    from tvm_mobilenet.parity.per_layer import PerLayerReport, Trace
    from tvm_mobilenet.schedules.spec import Precision
    from tvm_mobilenet.targets import TargetSpec

SCHEMA_VERSION = 1
EMULATION_LIMIT = 1_000_000_000  # mult-adds of one inference; some 100 s


@dataclass(frozen=True)
class KernelLaunch:
    """One launch of an inference; `operator` counts the network's operators from 0."""

    operator: int
    symbol: str
    kernel: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    dynamic_shared_bytes: int


@dataclass(frozen=True)
class GpuCode:
    """The machine code of a network's kernels, and their launches in order."""

    source: str
    images: tuple[nvrtc.Image, ...]
    launches: tuple[KernelLaunch, ...]
    precision: str
    cuda_graph: bool

    def write(self, directory: Path) -> None:
        """Write source, images and `kernels.json` into a new directory."""
        directory.mkdir(parents=True)
        (directory / cuda.SOURCE).write_text(self.source, encoding="utf-8")
        for image in self.images:
            ending = "ptx" if image.arch.startswith("compute_") else "cubin"
            (directory / f"{image.arch}.{ending}").write_bytes(image.code)
        resources = {i.arch: parse_log(i.log) for i in self.images if i.arch.startswith("sm_")}
        document = {
            "schema_version": SCHEMA_VERSION,
            "nvrtc": nvrtc.version(),
            "precision": self.precision,
            "cuda_graph": self.cuda_graph,
            "launches": [asdict(launch) for launch in self.launches],
            "resources": {
                arch: {name: asdict(used) for name, used in kernels.items()}
                for arch, kernels in resources.items()
            },
        }
        (directory / cuda.KERNELS).write_text(json.dumps(document, indent=1), encoding="utf-8")


def check_options(
    target: TargetSpec, architectures: Sequence[str] | None, precision: Precision
) -> tuple[str, ...]:
    """The architectures to compile for, the target's own if none is asked for; before any work.

    Raises UsageError for options that do not go with the target, InputError for an architecture
    that NVRTC does not know or that has no programmatic launches where the target wants them, or a
    precision that the GPU lacks, MissingToolError without NVRTC.
    """
    targets.at_precision(target, precision)
    if target.gpu is None:
        if architectures:
            raise UsageError(f"--arch goes with a GPU; {target.name} is none")
        return ()
    known = nvrtc.architectures()
    wanted = tuple(dict.fromkeys(architectures or (target.gpu.arch,)))
    for arch in wanted:
        if arch.rstrip("af") not in known:
            tool = f"NVRTC {nvrtc.version()}"
            raise InputError(f"{tool} does not compile for '{arch}'; it knows {', '.join(known)}")
        if target.gpu.programmatic_launch and _number(arch) < targets.PROGRAMMATIC_CAPABILITY:
            raise InputError(
                f"--arch {arch}: {target.source} says programmatic_launch, which needs "
                f"sm_{targets.PROGRAMMATIC_CAPABILITY}; build for {arch} without it"
            )
    return wanted


@contextlib.contextmanager
def source_only(target: TargetSpec) -> Iterator[None]:
    """Have TVM keep a GPU's code as source, as it does by itself only where there is no GPU.

    With one it would compile at once, by `tvm.support.nvcc`, for the target's architecture alone.
    """
    name = "TVM_COMPILE_FORCE_FALLBACK"
    earlier = os.environ.get(name)
    if target.gpu is not None:
        os.environ[name] = "1"
    try:
        yield
    finally:
        if target.gpu is not None:
            os.environ.pop(name)
            if earlier is not None:
                os.environ[name] = earlier


def assemble(
    compiled: Compiled,
    architectures: Sequence[str],
    *,
    progress: Callable[[str], None],
) -> GpuCode:
    """Machine code for each architecture, and PTX for the oldest of them and all that are newer.

    Launch bounds that make a kernel spill are relaxed: see `ptxas.compile_without_spills`; what
    spills nevertheless is told.
    Raises InputError when a kernel does not compile, MissingToolError without NVRTC.
    """
    from tvm_mobilenet.parity.cuda_launches import cuda_source, lower

    source = cuda_source(compiled.executable)
    images = []
    for arch in architectures:
        progress(f"NVRTC: {arch}")
        source, image = compile_without_spills(source, arch)
        images.append(image)
        spilling = [name for name, used in parse_log(image.log).items() if used.spills]
        if spilling:
            progress(
                f"{arch}: registers spill in {', '.join(spilling)}; 'tune' may find better knobs"
            )
    intermediate = f"compute_{min(map(_number, architectures))}"
    progress(f"NVRTC: {intermediate}")
    images.append(nvrtc.compile_source(source, intermediate))
    with source_only(compiled.target):
        lowered = lower(compiled.kernels, compiled.target)
    launches = [
        KernelLaunch(
            number, operator.symbol, launch.kernel, launch.grid, launch.block, launch.shared_bytes
        )
        for number, operator in enumerate(compiled.operators)
        for launch in lowered.functions[operator.symbol].launches
    ]
    precision = compiled.target.precision
    return GpuCode(source, tuple(images), tuple(launches), precision, cuda_graph=True)


def read_kernels(bundle: Path) -> Mapping[str, Any]:
    """`kernels.json` of a bundle for a GPU; InputError when it has none or an unknown version."""
    path = bundle / cuda.DIRECTORY / cuda.KERNELS
    try:
        document: dict[str, Any] = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"{bundle}: not a bundle for a GPU ({path} cannot be read)") from error
    if document.get("schema_version") != SCHEMA_VERSION:
        raise InputError(f"{path}: of another release; build the bundle again")
    return document


def prove(
    compiled: Compiled,
    references: Sequence[Sample],
    progress: Callable[[str], None],
    layers: Callable[[Trace], PerLayerReport] | None = None,
) -> ParityReport:
    """Judge a network on this CPU, kernel by kernel; what is too much work for that is not judged.

    layers: see `parity.cuda_network.prove`. Raises KernelError when a kernel breaks a rule of CUDA.
    """
    from tvm_mobilenet.parity import ParityReport, cuda_network

    work = sum(operator.mult_adds for operator in compiled.operators)
    if work > EMULATION_LIMIT:
        return ParityReport(
            (),
            0,
            not_checked=f"it needs a GPU, and {cuda.why_not_here()}; {work / 1e9:.1f} G mult-adds "
            f"are too many for emulation, which ends at {EMULATION_LIMIT / 1e9:.1f} G",
        )
    times = f"{len(references)} times " if len(references) > 1 else ""
    progress(f"emulating {times}{work / 1e6:.0f} M mult-adds of its CUDA kernels on this CPU")
    return cuda_network.prove(compiled, references, layers)


def _number(arch: str) -> int:
    return int(re.sub(r"\D", "", arch))
