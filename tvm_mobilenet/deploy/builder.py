"""The main job in one function: import, compile, prove equal to PyTorch, write the bundle."""

from __future__ import annotations

import dataclasses
import errno
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tvm_mobilenet.deploy import cuda, device, emulate, toolchain
from tvm_mobilenet.deploy.bundle import check_output, write_bundle
from tvm_mobilenet.deploy.library import cpu_features, export_library
from tvm_mobilenet.errors import InputError, ParityError
from tvm_mobilenet.parity import ParityReport, Sample, judge, samples
from tvm_mobilenet.runtime import Tensor, host, manifest
from tvm_mobilenet.runtime import cuda as runtime_cuda
from tvm_mobilenet.runtime.bundle import Program
from tvm_mobilenet.runtime.library import choose_threads, use_threads

if TYPE_CHECKING:
    import numpy as np
    import torch

    from tvm_mobilenet.compiler_pass.pipeline import Compiled
    from tvm_mobilenet.compiler_pass.schedule_rest import Traces
    from tvm_mobilenet.frontend import ImportedModel
    from tvm_mobilenet.frontend.export import Exporter
    from tvm_mobilenet.imaging import Preprocessing
    from tvm_mobilenet.schedules.base import Records
    from tvm_mobilenet.schedules.spec import Precision
    from tvm_mobilenet.targets import TargetSpec
    from tvm_mobilenet.tuning.records import Applicable

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Built:
    """A bundle that was written, and what is known of it. `seconds`: from import to bundle."""

    path: Path
    compiled: Compiled
    preprocessing: Preprocessing | None
    parity: ParityReport
    records: Applicable
    seconds: float


@dataclass(frozen=True)
class Proven:
    """A compiled model, its shared library, and the verdict on it with the samples used.

    runner: for another kind of machine, the C++ runner built for it. gpu: the GPU's part.
    """

    compiled: Compiled
    library: Path
    samples: Sequence[Sample]
    parity: ParityReport
    runner: device.Runner | None = None
    gpu: cuda.GpuCode | None = None


def build(
    model: str | Path | torch.nn.Module,
    *,
    target: str = "native",
    output: str | Path,
    alpha: float = 1.0,
    resolution: int = 224,
    batch: int = 1,
    batches: Sequence[int] = (),
    classes: int = 1000,
    weights: Path | None = None,
    exporter: Exporter = "dynamo",
    threads: int | None = None,
    logs: Path | None = None,
    dump_ir: Path | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    cc: str | None = None,
    arch: Sequence[str] | None = None,
    precision: Precision = "float32",
    c_library: bool = False,
    progress: Progress | None = None,
) -> Built:
    """Build a model (see `frontend.load_model`) for a target and write the bundle.

    batches: other batch sizes that the bundle shall take, multiples of `batch`. On CPUs each gets
    kernels of its own on the same weights; a GPU runs them in parts. Each is proven.
    mean, std: pre-processing of pictures instead of the model's own (see `imaging`).
    threads: how many it is scheduled for, and runs on unless told otherwise (None: the cores).
    logs: directory of tuning records instead of those that come with the package.
    dump_ir: directory for the IR after each compiler phase.
    cc: the C++ compiler that links, a command (None: see `toolchain.find`).
    arch, precision: of a GPU, see `cuda.check_options`.
    c_library: for another kind of machine, the network as a C library too (see docs/embed.md).

    Raises ParityError, with nothing written, when the compiled code is not equal to PyTorch;
    InputError for a model, target or output that cannot be used; MissingToolError.
    """
    from tvm_mobilenet import frontend, targets
    from tvm_mobilenet.tuning.records import applicable

    start = time.perf_counter()
    say = progress or (lambda message: None)
    spec = targets.load(target)
    check_output(output)
    if threads is not None and threads < 1:
        raise InputError(f"threads must be at least 1, not {threads}")
    compiler = find_compiler(spec, cc)  # before any long work
    architectures = cuda.check_options(spec, arch, precision)
    spec = targets.at_precision(spec, precision)
    if c_library and (spec.gpu is not None or not toolchain.is_cross(spec)):
        raise InputError(
            f"{target} is this kind of machine: its bundle has the C library's source, which "
            "cmake builds (runner/CMakeLists.txt); leave --c-library out"
        )
    if threads is not None:
        spec = dataclasses.replace(spec, cores=threads)
    records = applicable(spec, spec.cores, logs)
    say(f"importing {model if isinstance(model, str | Path) else type(model).__name__}")
    batches = sorted(set(batches) - {batch})
    if any(size < 1 or size % batch for size in batches):
        raise InputError(f"batches must be multiples of the compiled batch, {batch}")
    imported = frontend.load_model(
        model,
        alpha=alpha,
        resolution=resolution,
        batch=batch,
        classes=classes,
        weights=weights,
        exporter=exporter,
    )
    others = [at_batch(imported, model, size, exporter) for size in batches]
    preprocessing = preprocessing_of(imported, mean=mean, std=std)
    if dump_ir is not None:
        _make_directory(dump_ir)
    with tempfile.TemporaryDirectory(prefix="tvm-mobilenet-", ignore_cleanup_errors=True) as folder:
        proven = compile_and_prove(
            imported,
            spec,
            Path(folder) / manifest.LIBRARY,
            others=others,
            threads=threads,
            records=records,
            traces=records.trace,
            dump_ir=dump_ir,
            compiler=compiler,
            architectures=architectures,
            c_library=c_library,
            progress=say,
        )
        if proven.parity.checked and not proven.parity.passed:
            raise ParityError(f"{proven.parity.summary()}; no bundle was written")
        say(f"writing {output}")
        path = write_bundle(
            proven.compiled,
            proven.parity,
            proven.samples,
            output,
            library=proven.library,
            preprocessing=preprocessing,
            threads=threads,
            batches=batches,
            runner=proven.runner,
            gpu=proven.gpu,
        )
    seconds = time.perf_counter() - start
    return Built(path, proven.compiled, preprocessing, proven.parity, records, seconds)


def _make_directory(path: Path) -> None:
    """For --dump-ir; InputError when nothing can be written there."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written ({error.strerror}); give another --dump-ir DIR"
        ) from error


def at_batch(
    imported: ImportedModel, model: str | Path | torch.nn.Module, batch: int, exporter: Exporter
) -> ImportedModel:
    """The model, whose weights stay what they are, for another batch size.

    InputError when an input or output does not have the batch as its first axis.
    """
    from tvm_mobilenet import frontend

    if imported.module is None:
        other = frontend.load_model(model, batch=batch)
    else:
        resolution = imported.inputs[0].shape[-1]
        other = frontend.load_model(
            imported.module, resolution=resolution, batch=batch, exporter=exporter
        )
    first = imported.inputs[0].shape[:1]
    for mine, theirs in zip(
        (*imported.inputs, *imported.outputs), (*other.inputs, *other.outputs), strict=True
    ):
        if mine.shape[:1] != first or theirs.shape != (batch, *mine.shape[1:]):
            raise InputError(
                f"'{mine.name}' is {mine.shape}, and {theirs.shape} for a batch of {batch}; "
                "batches are for models of which all inputs and outputs have it as their first axis"
            )
    return other


def find_compiler(target: TargetSpec, cc: str | None = None) -> toolchain.Toolchain | None:
    """What links for a target, see `toolchain.find`; None: this machine's own compiler."""
    return toolchain.find(target, cc) if cc is not None or toolchain.is_cross(target) else None


def why_not_here(target: TargetSpec) -> str | None:
    """Why code for a target cannot run on this machine, in a few words; None when it can."""
    reason = host.why_not_here(host.architecture(target.mtriple), cpu_features(target))
    return reason if reason or target.gpu is None else runtime_cuda.why_not_here()


def preprocessing_of(
    imported: ImportedModel,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Preprocessing | None:
    """How pictures become the model's input; None when it takes none. InputError: see `imaging`."""
    from tvm_mobilenet.imaging import choose_preprocessing
    from tvm_mobilenet.models import BUILTIN

    return choose_preprocessing(
        imported.name,
        imported.inputs[0].shape if len(imported.inputs) == 1 else (),
        built_in=imported.source in BUILTIN,
        mean=mean,
        std=std,
    )


def compile_and_prove(
    imported: ImportedModel,
    target: TargetSpec,
    library: Path,
    *,
    inputs: Sequence[Mapping[str, np.ndarray]] | None = None,
    others: Sequence[ImportedModel] = (),
    threads: int | None = None,
    records: Records | None = None,
    traces: Traces | None = None,
    dump_ir: Path | None = None,
    compiler: toolchain.Toolchain | None = None,
    architectures: Sequence[str] = (),
    c_library: bool = False,
    progress: Progress,
) -> Proven:
    """Compile, link to the file `library`, load that very file and judge it.

    For another kind of machine the C++ runner is linked too, of the same object files, and judged
    under QEMU where that is installed.

    architectures: of a GPU, see `cuda.check_options`.
    records, traces: see `compile_model`; None takes the analytic choice, the fallback.
    others: the same model for other batch sizes, judged on samples of theirs; see `build`.
    inputs: what to judge on; None takes `parity.samples`. Code that this machine cannot run is not
    judged, and the report says so; the reference's outputs are worked out all the same, for the
    device.
    """
    from tvm_mobilenet.compiler_pass.pipeline import compile_model
    from tvm_mobilenet.parity.precision import at_precision
    from tvm_mobilenet.parity.reference import evaluate

    # First of all: when the compiler starts TVM's threads, they must not be bound to cores.
    use_threads(choose_threads(preferred=threads), exactly=False)
    compiler = compiler or find_compiler(target)
    with cuda.source_only(target):
        compiled = compile_model(
            imported,
            target,
            records=records,
            traces=traces,
            dump_ir=dump_ir,
            progress=progress,
            others=others if target.gpu is None else (),
        )
    runner = None
    gpu = None
    if target.gpu is not None:
        gpu = cuda.assemble(
            compiled,
            architectures or cuda.check_options(target, None, target.precision),
            progress=progress,
        )
    progress("linking")
    if compiler is None or target.gpu is not None or not toolchain.is_cross(target):
        export_library(compiled, library, toolchain=compiler)
    else:
        with tempfile.TemporaryDirectory(prefix="tvm-mobilenet-") as objects:
            export_library(compiled, library, toolchain=compiler, objects=Path(objects))
            progress("building the runner")
            place = library.with_name("runner")
            shared = library.with_name("libtvm_mobilenet.so") if c_library else None
            try:
                runner = device.build_runner(
                    compiled, Path(objects), compiler, place, threads=threads, library=shared
                )
            except NotImplementedError as error:
                progress(f"no runner: {error}")
    progress("comparing with PyTorch")
    own = evaluate(imported, samples(imported) if inputs is None else inputs)
    own = at_precision(own, imported, compiled)
    references = list(own)
    for other in others:
        batch = other.inputs[0].shape[0]
        made = evaluate(other, samples(other, count=1), kinds=[f"batch {batch}"])
        (sample,) = at_precision(made, other, compiled)
        parts = _in_parts(sample, imported.inputs[0].shape[0])
        check_rows_are_independent(imported, other, parts)
        references += parts if target.gpu is not None else [sample]
    if runner is not None:
        report = emulate.prove(runner.path, target, references)
        progress(report.summary())
        return Proven(compiled, library, own, report, runner)
    reason = why_not_here(target)
    images = None
    if gpu is not None:
        images = library.parent / runtime_cuda.DIRECTORY
        gpu.write(images)
    if gpu is not None and reason:
        # one sample: a kernel takes the same way through its code on every input
        report = cuda.prove(compiled, references[:1], progress)
    elif reason:
        report = ParityReport((), 0, not_checked=reason)
    else:
        program = Program(
            library,
            manifest.file_digest(library),
            [Tensor(i.name, i.shape, i.dtype) for i in imported.inputs],
            [Tensor(o.name, o.shape, o.dtype) for o in imported.outputs],
            preferred_threads=threads,
            batches=[other.inputs[0].shape[0] for other in others],
            entries={entry.batch: entry.name for entry in compiled.entries},
            gpu=images,
        )
        outputs = [program.run(sample.inputs) for sample in references]
        report = judge(outputs, references, target.precision)
    progress(report.summary())
    return Proven(compiled, library, own, report, gpu=gpu)


def check_rows_are_independent(
    imported: ImportedModel, other: ImportedModel, parts: Sequence[Sample]
) -> None:
    """ParityError when PyTorch computes parts of a batch otherwise than the whole: only a model
    that treats each row by itself can run other batch sizes in parts, as a bundle does.

    parts: of a sample of `other`, with the whole's outputs.
    """
    from tvm_mobilenet.parity.reference import evaluate

    alone = evaluate(imported, [part.inputs for part in parts])
    if not judge([part.float32 for part in alone], parts).passed:
        raise ParityError(
            f"{imported.name} computes a row otherwise in a batch of "
            f"{other.inputs[0].shape[0]}: leave --batches out"
        )


def _in_parts(sample: Sample, size: int) -> list[Sample]:
    """A sample of a larger batch as samples of `size` rows each."""
    rows = len(next(iter(sample.inputs.values())))

    def part(values: Mapping[str, np.ndarray], start: int) -> dict[str, np.ndarray]:
        return {name: array[start : start + size] for name, array in values.items()}

    return [
        Sample(*(part(kind, start) for kind in (sample.inputs, sample.float32, sample.float64)))
        for start in range(0, rows, size)
    ]
