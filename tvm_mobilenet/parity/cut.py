"""One operator as a model of its own: cut out of a network, compiled, and judged where it runs.

That is this machine; under QEMU for another kind of CPU, or a device over RPC; for a GPU its
emulated kernels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvm_mobilenet.errors import InputError
from tvm_mobilenet.parity.judge import ParityReport, judge
from tvm_mobilenet.parity.per_layer import PerLayerReport, Reference
from tvm_mobilenet.parity.samples import Sample

if TYPE_CHECKING:
    import onnx
    import tvm

    from tvm_mobilenet.compiler_pass.pipeline import Compiled
    from tvm_mobilenet.deploy.device import Runner
    from tvm_mobilenet.frontend import ImportedModel
    from tvm_mobilenet.profiling.remote import Device
    from tvm_mobilenet.schedules.base import Records
    from tvm_mobilenet.targets import TargetSpec

Change = Callable[[str, "tvm.IRModule"], "tvm.IRModule"]


@dataclass(frozen=True)
class Cut:
    """One operator as a model of its own, with inputs and what they must give."""

    model: onnx.ModelProto
    samples: tuple[Sample, ...]


@dataclass(frozen=True)
class BuiltCut:
    """The operator compiled, and the verdict on it. `library`: where it was linked, None for a
    GPU's kernels; `runner` as in `builder.Proven`.
    """

    compiled: Compiled
    library: Path | None
    runner: Runner | None
    report: ParityReport


def cut_out(
    imported: ImportedModel,
    layers: PerLayerReport,
    index: int,
) -> Cut:
    """Operator `index` as a model from the tensors before it to its own.

    Raises InputError for one that only changes the layout of a tensor.
    """
    import numpy as np

    reference = Reference(imported, [operator.tensor for operator in layers.operators])
    samples = []
    for values in layers.inputs:
        exact = {**reference.all(values, double=True), **values}
        theirs = reference.all(values, double=False)
        known = {name: value.astype(np.float32) for name, value in exact.items()}
        name = reference.tensors[index]
        right = reference.one(index, known)
        error = np.where(np.isfinite(theirs[name]), theirs[name] - exact[name], 0.0)
        samples.append(
            Sample(known, {name: right + error}, {name: right})  # PyTorch's error as in the network
        )
    model = reference.model_of(index, samples[0].inputs)
    names = [entry.name for entry in model.graph.input]
    return Cut(
        model,
        tuple(replace(s, inputs={name: s.inputs[name] for name in names}) for s in samples),
    )


def build_cut(
    cut: Cut,
    target: TargetSpec,
    folder: Path,
    *,
    last_phase: str = "scheduled",
    records: Records | None = None,
    change: Change | None = None,
    cautious: bool = False,
    device: Device | None = None,
) -> BuiltCut:
    """The cut-out operator compiled, linked in the directory and judged; **runs its code**.

    last_phase, change, cautious: see `pipeline.Experiment`. What a GPU has no threads for before
    it is scheduled runs on this CPU. device: where to run over RPC, for CPUs.
    Raises InputError where code for another kind of machine cannot be run under QEMU,
    MissingToolError, NothingMeasuredError when the device fails, KernelError.
    """
    from tvm_mobilenet import frontend, targets
    from tvm_mobilenet.compiler_pass.pipeline import Experiment, compile_model
    from tvm_mobilenet.deploy import cuda, emulate
    from tvm_mobilenet.deploy.builder import find_compiler
    from tvm_mobilenet.deploy.device import build_runner
    from tvm_mobilenet.deploy.library import export_library
    from tvm_mobilenet.deploy.validate import program_of
    from tvm_mobilenet.parity import cuda_network
    from tvm_mobilenet.remote.trace import Traced
    from tvm_mobilenet.runtime import manifest

    plain_of_gpu = target.gpu is not None and last_phase != "scheduled"
    host = targets.load(targets.NATIVE) if plain_of_gpu else None
    experiment = Experiment(last_phase, cautious_code=cautious, host=host)
    if change is not None:
        experiment = replace(experiment, change=change)
    with cuda.source_only(target):
        compiled = compile_model(
            frontend.import_onnx(cut.model, name="operator"),
            target,
            records=records,
            experiment=experiment,
        )
    if target.gpu is not None and host is None:
        return BuiltCut(compiled, None, None, cuda_network.prove(compiled, cut.samples))
    library, compiler = folder / manifest.LIBRARY, find_compiler(compiled.target)
    if device is not None:
        export_library(compiled, library, toolchain=compiler)
        with Traced(device, library, target.cores, list(cut.samples[0].inputs)) as board:
            return BuiltCut(compiled, library, None, board.prove(cut.samples))
    if compiler is None:
        program = program_of(compiled, export_library(compiled, library))
        report = judge([program.run(sample.inputs) for sample in cut.samples], cut.samples)
        return BuiltCut(compiled, library, None, report)
    objects = folder / "objects"
    objects.mkdir()
    export_library(compiled, library, toolchain=compiler, objects=objects)
    runner = build_runner(compiled, objects, compiler, folder / "runner")
    report = emulate.prove(runner.path, target, cut.samples)
    if not report.checked:
        raise InputError(f"--bisect runs parts of the network under QEMU: {report.not_checked}")
    return BuiltCut(compiled, library, runner, report)


def target_of(described: Mapping[str, Any]) -> TargetSpec:
    """The target in a bundle's manifest, scheduled for as many threads as the bundle is.

    It need not be one of the package's, nor `native` be this machine. Raises InputError where a key
    is missing.
    """
    from tvm_mobilenet.targets import GpuSpec, TargetSpec

    names = {field.name for field in dataclasses.fields(TargetSpec)}
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in described.items()
        if name in names
    }
    try:
        if values.get("gpu") is not None:
            values["gpu"] = GpuSpec(**values["gpu"])
        return TargetSpec(**values, source="the bundle's manifest")
    except TypeError as error:
        raise InputError(f"the bundle does not say what it was built for: {error}") from error
