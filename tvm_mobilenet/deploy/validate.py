"""Numerical parity of a bundle, or of a model compiled for the occasion, from end to end."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from tvm_mobilenet.deploy import emulate
from tvm_mobilenet.errors import InputError
from tvm_mobilenet.imaging import Preprocessing
from tvm_mobilenet.parity import ParityReport, judge, samples
from tvm_mobilenet.parity.judge import SAMPLES
from tvm_mobilenet.parity.per_layer import PerLayerReport, Trace, per_layer
from tvm_mobilenet.parity.precision import at_precision, simulated
from tvm_mobilenet.parity.samples import Sample, load_samples
from tvm_mobilenet.runtime import Bundle, Tensor, cuda, host, manifest
from tvm_mobilenet.runtime.bundle import Program

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tvm_mobilenet.compiler_pass.pipeline import Compiled
    from tvm_mobilenet.deploy.builder import Progress
    from tvm_mobilenet.frontend import ImportedModel
    from tvm_mobilenet.profiling.remote import Device
    from tvm_mobilenet.schedules.base import Records
    from tvm_mobilenet.schedules.spec import Precision
    from tvm_mobilenet.targets import TargetSpec

FRESH_SEED = 1  # the samples stored in a bundle have seed 0
_LAYER_SAMPLES = 2  # more would only cost memory: two full sets of tensors each


@dataclass(frozen=True)
class Inputs:
    """What to judge on, beside the samples in a bundle.

    count, seed: of random samples. images: pictures. adversarial: see `parity.adversarial`.
    """

    count: int = 2
    seed: int = FRESH_SEED
    images: Sequence[Path] = ()
    adversarial: bool = False

    def references(
        self, imported: ImportedModel, preprocessing: Preprocessing | None
    ) -> list[Sample]:
        """The inputs, and what PyTorch and ONNX Runtime make of them."""
        from tvm_mobilenet.parity.adversarial import adversarial
        from tvm_mobilenet.parity.reference import evaluate, onnxruntime_outputs

        usual = samples(
            imported, self.seed, self.count, images=self.images, preprocessing=preprocessing
        )
        chosen = [(SAMPLES, values) for values in usual]
        if self.adversarial:
            chosen += adversarial(imported, self.seed)
        return evaluate(
            imported,
            [values for _, values in chosen],
            kinds=[kind for kind, _ in chosen],
            peer=onnxruntime_outputs(imported),
        )


def validate_bundle(
    path: str | Path,
    *,
    against: ImportedModel | None = None,
    inputs: Inputs | None = None,
    layers: bool = False,
    threads: int | None = None,
    device: Device | None = None,
    progress: Progress | None = None,
) -> ParityReport:
    """Run a bundle on its stored samples and hold the outputs against those of PyTorch stored too.

    With `against`, the model it was built from, also on fresh inputs, and with `layers` each
    operator too. It runs on `device` over RPC where one is given; else here; else, being for
    another kind of machine, its runner runs under QEMU, and being for a GPU, its kernels are
    emulated on this CPU. Raises InputError when the bundle cannot be used so, or is of another
    model; NothingMeasuredError when the device fails; MissingToolError; KernelError.
    """
    inputs = inputs or Inputs()
    directory = Path(path)
    if against is None:
        _needs_model(inputs, layers)
    elif not manifest.variants(directory):
        _refuse_layers(layers, manifest.read(directory).precision)
    if device is not None:
        contents = manifest.read(directory)
        manifest.check_files(directory, contents)
        references = _references(directory, contents, against, inputs)
        return _judge_remotely(directory, contents, references, against, device, threads, layers)
    if (directory / emulate.RUNNER).is_file():
        contents = manifest.read(directory)
        manifest.check_files(directory, contents)
        if host.why_not_here(contents.architecture, contents.cpu_features):
            from tvm_mobilenet import targets

            target = targets.load(str(contents.document["target"]["name"]))
            references = _references(directory, contents, against, inputs)
            operators = contents.document["operators"]
            runner = directory / emulate.RUNNER
            return _judge_under_qemu(
                runner, target, references, operators, against if layers else None
            )
    variants = manifest.variants(directory)  # of them the loader takes one that runs here
    say = progress or (lambda message: None)
    if not variants and (why := _why_emulated(directory)):
        contents = manifest.read(directory)
        manifest.check_files(directory, contents)
        references = _references(directory, contents, against, inputs)
        say(f"no GPU ({why}): the kernels run emulated on the CPU")
        emulated = _judge_emulated_bundle(directory, references, say)
        if layers:
            assert against is not None
            found = _layers_of_gpu_bundle(directory, contents, against, references, say)
            emulated = dataclasses.replace(emulated, layers=found)
        return emulated
    with Bundle.load(directory, threads=threads) as bundle:
        contents = manifest.read(bundle.path)
        _refuse_layers(layers, contents.precision)
        references = _references(bundle.path, contents, against, inputs)
        outputs = [bundle.program.run(sample.inputs) for sample in references]
        report = judge(outputs, references, contents.precision)
        if layers and contents.kind == "cuda":  # a GPU's kernels have no traced entry
            assert against is not None
            found = _layers_of_gpu_bundle(bundle.path, contents, against, references, say)
            report = dataclasses.replace(report, layers=found)
        elif layers:
            assert against is not None
            operators = bundle.manifest["operators"]
            try:
                found = judge_layers(bundle.program.trace, operators, against, references)
            except InputError as error:
                raise InputError(f"{bundle.path}: {error}") from error
            report = dataclasses.replace(report, layers=found)
        return report


def _references(
    directory: Path, contents: manifest.Manifest, against: ImportedModel | None, inputs: Inputs
) -> list[Sample]:
    """The samples in the bundle, and fresh ones where there is the model."""
    stored = load_samples(
        directory / manifest.SAMPLES,
        [tensor.name for tensor in contents.inputs],
        [tensor.name for tensor in contents.outputs],
    )
    if against is None:
        return stored
    from tvm_mobilenet.parity.reference import onnxruntime_outputs

    _check_same_interface(directory, contents, against)
    if peer := onnxruntime_outputs(against):
        stored = [dataclasses.replace(sample, onnxruntime=peer(sample.inputs)) for sample in stored]
    pictures = contents.document["preprocessing"]
    fresh = inputs.references(
        against, None if pictures is None else Preprocessing.from_json(pictures)
    )
    operators = contents.document["operators"]
    return [*stored, *simulated(fresh, against, contents.precision, operators)]


def _why_emulated(directory: Path) -> str | None:
    """Why a bundle's kernels cannot run on a GPU here though its host code can; else None."""
    contents = manifest.read(directory)
    if contents.kind != "cuda" or host.why_not_here(contents.architecture, contents.cpu_features):
        return None
    return cuda.why_not_here()


def _judge_emulated_bundle(
    directory: Path, references: Sequence[Sample], progress: Progress
) -> ParityReport:
    from tvm_mobilenet.parity import cuda_bundle
    from tvm_mobilenet.parity.cuda_network import MACHINE

    seconds = cuda_bundle.seconds(directory, len(references))
    progress(f"{len(references)} inputs; about {max(seconds, 10):.0f} s")
    outputs = cuda_bundle.run_bundle(directory, [r.inputs for r in references], progress)
    report = judge(outputs, references, manifest.read(directory).precision)
    return dataclasses.replace(report, machine=MACHINE)


def _layers_of_gpu_bundle(
    directory: Path,
    contents: manifest.Manifest,
    imported: ImportedModel,
    references: Sequence[Sample],
    progress: Progress,
) -> PerLayerReport:
    """Its operators, from the model compiled again: InputError if that gives other kernels."""
    from tvm_mobilenet import targets
    from tvm_mobilenet.compiler_pass.pipeline import compile_model
    from tvm_mobilenet.deploy.cuda import source_only
    from tvm_mobilenet.parity.cuda_launches import cuda_source
    from tvm_mobilenet.parity.cuda_network import NetworkEmulator
    from tvm_mobilenet.tuning.records import applicable

    name = str(contents.document["target"]["name"])
    precision = cast("Precision", contents.precision)
    target = targets.at_precision(targets.load(name), precision)
    with source_only(target):
        records = applicable(target, target.cores)
        compiled = compile_model(imported, target, records=records, progress=progress)
    stored = (directory / cuda.DIRECTORY / cuda.SOURCE).read_text(encoding="utf-8")
    if cuda_source(compiled.executable) != stored:
        raise InputError(
            f"{directory}: its kernels are not those that this release makes of {imported.name} "
            f"for {name}; build it again, or compare the operators of the model: validate MODEL "
            f"--target {name} --per-layer"
        )
    progress("comparing every operator")
    with NetworkEmulator(compiled) as network:
        return judge_layers(network.trace, operators_of(compiled), imported, references)


def _judge_under_qemu(
    runner: Path,
    target: TargetSpec,
    references: Sequence[Sample],
    operators: Sequence[Mapping[str, object]],
    imported: ImportedModel | None,
) -> ParityReport:
    """Outputs, and where the model is given operators too."""
    from tvm_mobilenet.deploy import emulate_trace

    report = emulate.prove(runner, target, references)
    if imported is None or not report.checked:
        return report
    trace = emulate_trace.traced(runner, target, [info.name for info in imported.inputs])
    found = judge_layers(trace, operators, imported, references)
    return dataclasses.replace(report, layers=found)


def _judge_remotely(
    directory: Path,
    contents: manifest.Manifest,
    references: Sequence[Sample],
    against: ImportedModel | None,
    device: Device,
    threads: int | None,
    layers: bool,
) -> ParityReport:
    from tvm_mobilenet.remote.trace import Traced

    target = contents.document["target"]
    with Traced(
        device,
        directory / manifest.LIBRARY,
        threads or contents.threads or int(target["cores"]),
        [tensor.name for tensor in contents.inputs],
    ) as board:
        report = board.prove(references)
        if layers:
            assert against is not None
            operators = contents.document["operators"]
            found = judge_layers(board.trace, operators, against, references)
            report = dataclasses.replace(report, layers=found)
        return report


def validate_model(
    imported: ImportedModel,
    target: TargetSpec,
    *,
    inputs: Inputs | None = None,
    layers: bool = False,
    threads: int | None = None,
    progress: Progress,
) -> ParityReport:
    """Compile a model for a target and judge it; nothing is kept.

    A GPU's kernels are emulated on this CPU where there is none, and for `layers` in any case;
    another kind of machine's runner runs under QEMU.
    """
    from tvm_mobilenet.deploy.builder import compile_and_prove, preprocessing_of
    from tvm_mobilenet.tuning.records import applicable

    _refuse_layers(layers, target.precision)
    references = (inputs or Inputs()).references(imported, preprocessing_of(imported))
    records = applicable(target, threads or target.cores)
    if target.gpu is not None and (layers or cuda.why_not_here()):
        return _judge_emulated(imported, target, references, records, layers, progress)
    usual = [sample.inputs for sample in references if sample.kind == SAMPLES]
    with tempfile.TemporaryDirectory(prefix="tvm-mobilenet-") as folder:
        library = Path(folder) / manifest.LIBRARY
        proven = compile_and_prove(
            imported,
            target,
            library,
            inputs=usual[:1],
            threads=threads,
            records=records,
            progress=progress,
        )
        if not proven.parity.checked:
            return proven.parity
        if proven.runner is not None:
            operators = operators_of(proven.compiled)
            return _judge_under_qemu(
                proven.runner.path, target, references, operators, imported if layers else None
            )
        images = Path(folder) / cuda.DIRECTORY if target.gpu is not None else None
        program = program_of(proven.compiled, library, threads, images)
        references = at_precision(references, imported, proven.compiled)
        outputs = [program.run(sample.inputs) for sample in references]
        report = judge(outputs, references, target.precision)
        if layers:
            progress("comparing every operator")
            operators = operators_of(proven.compiled)
            found = judge_layers(program.trace, operators, imported, references)
            report = dataclasses.replace(report, layers=found)
        return report


def _judge_emulated(
    imported: ImportedModel,
    target: TargetSpec,
    references: Sequence[Sample],
    records: Records | None,
    layers: bool,
    progress: Progress,
) -> ParityReport:
    """A GPU's kernels on this CPU, on every input."""
    from tvm_mobilenet.compiler_pass.pipeline import compile_model
    from tvm_mobilenet.deploy import cuda

    with cuda.source_only(target):
        compiled = compile_model(imported, target, records=records, progress=progress)
    references = at_precision(references, imported, compiled)

    def operators(trace: Trace) -> PerLayerReport:
        progress("comparing every operator")
        return judge_layers(trace, operators_of(compiled), imported, references)

    return cuda.prove(compiled, references, progress, operators if layers else None)


def judge_layers(
    trace: Trace,
    operators: Sequence[Mapping[str, object]],
    imported: ImportedModel,
    references: Sequence[Sample],
) -> PerLayerReport:
    """`per_layer` on the first ordinary samples."""
    usual = [sample.inputs for sample in references if sample.kind == SAMPLES]
    return per_layer(trace, operators, imported, usual[:_LAYER_SAMPLES])


def program_of(
    compiled: Compiled, library: Path, threads: int | None = None, gpu: Path | None = None
) -> Program:
    """The library that was made of a compiled model, loaded. **Runs its code.**

    gpu: the directory of a GPU's machine code.
    """
    imported = compiled.imported
    return Program(
        library,
        manifest.file_digest(library),
        [Tensor(info.name, info.shape, info.dtype) for info in imported.inputs],
        [Tensor(info.name, info.shape, info.dtype) for info in imported.outputs],
        preferred_threads=threads,
        gpu=gpu,
    )


def operators_of(compiled: Compiled) -> list[dict[str, object]]:
    """The operators as a manifest lists them."""
    return [dataclasses.asdict(operator) for operator in compiled.operators]


def _check_same_interface(
    directory: Path, contents: manifest.Manifest, imported: ImportedModel
) -> None:
    """InputError when a bundle is not one of that model."""
    for kind, ours, theirs in (
        ("input", contents.inputs, imported.inputs),
        ("output", contents.outputs, imported.outputs),
    ):
        have, wanted = ([(t.name, t.shape, t.dtype) for t in ts] for ts in (ours, theirs))
        if have != wanted:
            raise InputError(
                f"{directory} was not built from {imported.source}: its {kind}s are {have}, the "
                f"model's {wanted}"
            )


def _refuse_layers(layers: bool, precision: str) -> None:
    """InputError where operators' results are no float32 tensors, which is what is compared."""
    if layers and precision != "float32":
        raise InputError(f"operators are compared in float32 only, not in {precision}")


def _needs_model(inputs: Inputs, layers: bool) -> None:
    """InputError for what a bundle alone cannot tell."""
    for asked, what in (
        (inputs.images, "images need"),
        (inputs.adversarial, "adversarial inputs need"),
        (layers, "operators' tensors need"),
    ):
        if asked:
            raise InputError(f"{what} the model too, for their reference: --model MODEL")
