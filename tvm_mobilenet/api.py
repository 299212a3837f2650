"""The verbs of the command line as functions.

    import tvm_mobilenet as tm

    tm.export("mobilenet_v1", "m.onnx", alpha=1.0, resolution=224)
    bundle = tm.build("m.onnx", target="native", output="out")
    logits = bundle.run(x)
    tm.validate("out").summary()

A model is what the command line's MODEL may be, or a `torch.nn.Module`; the options are those of
the command line. Errors are `tvm_mobilenet.errors`: InputError and its siblings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvm_mobilenet.errors import InputError, UsageError
from tvm_mobilenet.runtime import Bundle

if TYPE_CHECKING:
    import onnx
    import torch

    from tvm_mobilenet.frontend.export import Exporter
    from tvm_mobilenet.models.cost import Cost
    from tvm_mobilenet.parity import ParityReport
    from tvm_mobilenet.profiling.bench import BenchReport
    from tvm_mobilenet.profiling.profile import Profile
    from tvm_mobilenet.profiling.remote import Device
    from tvm_mobilenet.profiling.report import Report
    from tvm_mobilenet.remote.deploy import Deployment
    from tvm_mobilenet.schedules.spec import Precision
    from tvm_mobilenet.tuning.report import Outcome

__all__ = [
    "Bundle",
    "bench",
    "build",
    "cost",
    "deploy",
    "export",
    "load",
    "profile",
    "report",
    "tune",
    "validate",
]

Progress = Callable[[str], None]


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
) -> Bundle:
    """Compile a model, prove it equal to PyTorch, write the bundle `output` and load it.

    Raises as `tvm_mobilenet.deploy.build` does, which also writes bundles that are not for this
    machine: before any work, InputError for a target whose bundle could not be loaded here.
    """
    from tvm_mobilenet import deploy, targets

    if reason := deploy.why_not_here(targets.load(target)):
        raise InputError(
            f"{target}: a bundle for it cannot be loaded here ({reason}); tm.deploy.build, with "
            "the same options, writes one without loading it"
        )
    built = deploy.build(
        model,
        target=target,
        output=output,
        alpha=alpha,
        resolution=resolution,
        batch=batch,
        batches=batches,
        classes=classes,
        weights=weights,
        exporter=exporter,
        threads=threads,
        logs=logs,
        dump_ir=dump_ir,
        mean=mean,
        std=std,
        cc=cc,
        arch=arch,
        precision=precision,
        c_library=c_library,
        progress=progress,
    )
    return load(built.path)


def load(path: str | Path, *, threads: int | None = None, verify: bool = True) -> Bundle:
    """Load a bundle; see `runtime.Bundle.load`. **This runs the code in the bundle.**"""
    return Bundle.load(path, threads=threads, verify=verify)


def export(
    model: str | torch.nn.Module,
    path: str | Path,
    *,
    alpha: float = 1.0,
    resolution: int = 224,
    batch: int = 1,
    classes: int = 1000,
    weights: Path | None = None,
    exporter: Exporter = "dynamo",
    opset: int | None = None,
) -> onnx.ModelProto:
    """Write a PyTorch model as checked ONNX to `path`, whole or not at all, and return it.

    Raises as `frontend.load_module` and `frontend.export_onnx` do.
    """
    from tvm_mobilenet import frontend

    loaded = frontend.load_module(
        model, alpha=alpha, resolution=resolution, batch=batch, classes=classes, weights=weights
    )
    return frontend.export_onnx(
        loaded.module, loaded.input_shape, path, exporter=exporter, opset=opset
    )


def cost(
    model: str | Path | torch.nn.Module,
    *,
    alpha: float = 1.0,
    resolution: int = 224,
    batch: int = 1,
    classes: int = 1000,
) -> Cost:
    """Mult-adds and parameters of a model per layer and in all; nothing is compiled.

    An ONNX file has its own size: only `batch` applies to it, where its batch axis is symbolic.
    """
    from tvm_mobilenet import frontend
    from tvm_mobilenet.models.cost import cost, cost_of_onnx

    if isinstance(model, str | Path) and str(model).endswith(".onnx"):
        from tvm_mobilenet.frontend.read import read_file

        return cost_of_onnx(read_file(Path(model)), batch=None if batch == 1 else batch)
    loaded = frontend.load_module(
        model, alpha=alpha, resolution=resolution, batch=batch, classes=classes
    )
    return cost(loaded.module, loaded.input_shape)


def validate(
    subject: str | Path | torch.nn.Module,
    *,
    target: str = "native",
    precision: Precision = "float32",
    against: str | Path | torch.nn.Module | None = None,
    alpha: float = 1.0,
    resolution: int = 224,
    batch: int = 1,
    classes: int = 1000,
    weights: Path | None = None,
    exporter: Exporter = "dynamo",
    seed: int = 1,
    count: int = 2,
    images: Sequence[Path] = (),
    adversarial: bool = False,
    layers: bool = False,
    device: Device | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> ParityReport:
    """Parity of a bundle directory, or of a model compiled for `target` for the occasion.

    `precision`: of a GPU's arithmetic for a model; a bundle has its own.

    A bundle is judged on its stored samples and, with the model it was built from given as
    `against`, on `count` fresh ones, on `images` and on `adversarial` inputs; `layers`: each
    operator too (`ParityReport.layers`). `device`: where to run a bundle over RPC. The options from
    `alpha` to `exporter` are those of the model. A failure is in the report, not raised. Raises
    InputError, MissingToolError; NothingMeasuredError when the device fails.
    """
    from tvm_mobilenet import deploy, frontend, targets
    from tvm_mobilenet.deploy.validate import Inputs

    def imported(model: str | Path | torch.nn.Module) -> frontend.ImportedModel:
        return frontend.load_model(
            model,
            alpha=alpha,
            resolution=resolution,
            batch=batch,
            classes=classes,
            weights=weights,
            exporter=exporter,
        )

    inputs = Inputs(count, seed, images, adversarial)
    if isinstance(subject, str | Path) and Path(subject).is_dir():
        return deploy.validate_bundle(
            subject,
            against=None if against is None else imported(against),
            inputs=inputs,
            layers=layers,
            threads=threads,
            device=device,
            progress=progress,
        )
    if against is not None:
        raise UsageError("'against' goes with a bundle; a model is its own reference")
    if device is not None:
        raise UsageError("a device runs a bundle; build one for it first")
    spec = targets.at_precision(targets.load(target), precision)
    return deploy.validate_model(
        imported(subject),
        spec,
        inputs=inputs,
        layers=layers,
        threads=threads,
        progress=progress or (lambda message: None),
    )


def bench(models: str | Path | Sequence[str | Path], **options: Any) -> BenchReport:
    """Latency of our builds of `models` against other runtimes; see `profiling.bench.bench`."""
    from tvm_mobilenet.profiling.bench import bench

    return bench([models] if isinstance(models, str | Path) else models, **options)


def deploy(bundle: str | Path, **options: Any) -> Deployment:
    """Prove and time a bundle on another machine over RPC; see `remote.deploy.deploy`."""
    from tvm_mobilenet.remote.deploy import deploy

    return deploy(bundle, **options)


def profile(bundle: Bundle | str | Path, **options: Any) -> Profile:
    """Time per operator of a bundle, against this machine's limits; `.rows()` gives flat rows.

    See `profiling.profile.profile` for the options.
    """
    from tvm_mobilenet.profiling.profile import profile

    return profile(bundle, **options)


def tune(model: str | Path | torch.nn.Module, **options: Any) -> Outcome:
    """Find the fastest knobs for a model's operators and record them; see `tuning.tune.tune`."""
    from tvm_mobilenet.tuning.tune import tune

    return tune(model, **options)


def report(**options: Any) -> Report:
    """Build and time the MobileNet paper's networks on this machine; `profiling.report.report`."""
    from tvm_mobilenet.profiling.report import report

    return report(**options)
