"""A network on the GPU of this machine: compiled, loaded, and held against PyTorch."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tvm_mobilenet.errors import InputError, ParityError

if TYPE_CHECKING:
    from tvm_mobilenet.compiler_pass.pipeline import Compiled
    from tvm_mobilenet.deploy.cuda import GpuCode
    from tvm_mobilenet.frontend import ImportedModel
    from tvm_mobilenet.runtime.cuda import CudaModule
    from tvm_mobilenet.schedules.base import Records
    from tvm_mobilenet.targets import TargetSpec

Progress = Callable[[str], None]


@dataclass(frozen=True)
class GpuNetwork:
    """A network that can be run, with what the compiler said of it."""

    imported: ImportedModel
    compiled: Compiled
    code: GpuCode
    module: CudaModule


def check_device(target: TargetSpec) -> None:
    """InputError when no GPU is here, or PyTorch, whose events and kernels are used, sees none."""
    from tvm_mobilenet.runtime import cuda

    if reason := cuda.why_not_here():
        raise InputError(f"{target.name}: cannot be measured here: {reason}")
    import torch

    if not torch.cuda.is_available():
        raise InputError(
            f"{target.name}: cannot be measured here: PyTorch {torch.__version__} sees no GPU; "
            "install one that is built for CUDA 13"
        )


def device_name() -> str:
    """The GPU's own name."""
    import torch

    return str(torch.cuda.get_device_name(0))


@contextlib.contextmanager
def loaded(
    imported: ImportedModel,
    target: TargetSpec,
    *,
    cuda_graph: bool = True,
    logs: Path | None = None,
    records: Records | None = None,
    progress: Progress = lambda text: None,
) -> Iterator[GpuNetwork]:
    """Compile a network for a GPU at the target's precision, and load it here.

    logs: tuning records in place of the shipped ones; records: in place of both. Raises as
    `deploy.cuda.check_options` and `runtime.cuda.CudaModule`.
    """
    from tvm_mobilenet.compiler_pass.pipeline import compile_model
    from tvm_mobilenet.deploy import cuda
    from tvm_mobilenet.deploy.library import export_library
    from tvm_mobilenet.runtime import manifest
    from tvm_mobilenet.runtime.cuda import DIRECTORY, CudaModule
    from tvm_mobilenet.tuning.records import applicable

    architectures = cuda.check_options(target, None, target.precision)
    with cuda.source_only(target):
        if records is None:
            records = applicable(target, target.cores, logs)
        compiled = compile_model(imported, target, records=records, cuda_graph=cuda_graph)
    with tempfile.TemporaryDirectory() as folder:
        library = export_library(compiled, Path(folder) / manifest.LIBRARY)
        code = cuda.assemble(compiled, architectures, progress=progress)
        code.write(Path(folder) / DIRECTORY)
        digest = manifest.file_digest(library)
        module = CudaModule(library, digest, Path(folder) / DIRECTORY)
        yield GpuNetwork(imported, compiled, code, module)


def prove(
    imported: ImportedModel,
    target: TargetSpec,
    logs: Path | None = None,
    progress: Progress = lambda text: None,
    *,
    records: Records | None = None,
) -> str:
    """Parity on the GPU; and the CUDA graph's outputs are those of single launches, to the bit.

    logs, records: as of `loaded`. Returns the report in a line. Raises ParityError when one of both
    does not hold.
    """
    import numpy as np

    from tvm_mobilenet.parity import judge, samples
    from tvm_mobilenet.parity.precision import at_precision
    from tvm_mobilenet.parity.reference import evaluate

    outputs = []
    for cuda_graph in (True, False):
        with loaded(
            imported, target, cuda_graph=cuda_graph, logs=logs, records=records, progress=progress
        ) as network:
            if cuda_graph:
                exact = evaluate(imported, samples(imported))
                references = at_precision(exact, imported, network.compiled)
            names = [output.name for output in imported.outputs]
            feeds = [[s.inputs[i.name] for i in imported.inputs] for s in references]
            outputs.append(  # the first is launched singly, and recorded
                [dict(zip(names, network.module(*feed), strict=True)) for feed in [*feeds, *feeds]]
            )
    with_graph, without = outputs
    for part in (with_graph[: len(references)], with_graph[len(references) :]):
        report = judge(part, references, target.precision)
        if not report.passed:
            raise ParityError(report.summary())
    same = all(
        np.array_equal(a[name], b[name], equal_nan=True)
        for a, b in zip(with_graph, without, strict=True)
        for name in names
    )
    if not same:
        raise ParityError("a CUDA graph changes the outputs")
    return report.summary()
