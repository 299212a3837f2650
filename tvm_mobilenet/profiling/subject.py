"""What is timed: one model at one size, in every form that a contestant may start from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tvm_mobilenet.errors import UsageError
from tvm_mobilenet.profiling.contestants import Source

if TYPE_CHECKING:
    import numpy as np
    import torch

    from tvm_mobilenet.frontend import ImportedModel

GRID_ALPHAS = (1.0, 0.75, 0.5, 0.25)
GRID_RESOLUTIONS = (224, 192, 160, 128)


@dataclass(frozen=True)
class Subject:
    """One model at one size; `model` and the options are what `frontend.load_model` takes."""

    model: str | Path
    alpha: float = 1.0
    resolution: int = 224
    classes: int = 1000
    weights: Path | None = None
    batch: int = 1

    @property
    def label(self) -> str:
        """The name in tables: a built-in model with its multipliers, else what the user gave."""
        from tvm_mobilenet import models

        if self.model in models.BUILTIN:
            return f"{self.model} {float(self.alpha)}/{self.resolution}"
        return Path(self.model).name if isinstance(self.model, Path) else self.model

    def load(self, batch: int | None = None) -> ImportedModel:
        """Import it, with another batch size when one is given."""
        from tvm_mobilenet import frontend

        return frontend.load_model(
            self.model,
            alpha=self.alpha,
            resolution=self.resolution,
            classes=self.classes,
            weights=self.weights,
            batch=self.batch if batch is None else batch,
        )


@dataclass(frozen=True)
class Prepared:
    """A subject with its files, an input, and what PyTorch computes for it in float64."""

    subject: Subject
    source: Source
    inputs: list[np.ndarray]
    expected: list[np.ndarray]
    mult_adds: int  # of the whole batch


def subjects(
    models: Sequence[str | Path],
    *,
    alpha: float,
    resolution: int,
    classes: int,
    weights: Path | None,
    batches: Sequence[int],
    grid: bool,
) -> list[Subject]:
    """Every model at every batch size, and with `grid` at the paper's 16 (alpha, resolution)."""
    from tvm_mobilenet.models import BUILTIN

    sizes = [(alpha, resolution)]
    if grid:
        for model in models:
            if model not in BUILTIN:
                raise UsageError(f"--grid needs built-in models, and {model} is none")
        if (alpha, resolution) != (1.0, 224):
            raise UsageError("--grid runs all 16 sizes: leave out --alpha and --resolution")
        sizes = [(a, r) for a in GRID_ALPHAS for r in GRID_RESOLUTIONS]
    return [
        Subject(model, a, r, classes, weights, batch)
        for model in models
        for a, r in sizes
        for batch in batches
    ]


def prepare(
    subject: Subject, folder: Path, *, bundle: Path | None, program: bool, seed: int = 0
) -> Prepared:
    """Write the subject's ONNX and, with `program`, PyTorch form; compute the reference.

    `bundle`: ours, already built. Raises InputError as `frontend.load_model` does, and for a model
    whose reference cannot be computed.
    """
    import onnx

    from tvm_mobilenet.parity.reference import evaluate
    from tvm_mobilenet.parity.samples import samples

    imported = subject.load()
    source = Source(
        onnx=folder / "model.onnx",
        onnx_batch_1=folder / "batch1.onnx",
        program=folder / "program.pt2" if program else None,
        bundle=bundle,
    )
    onnx.save(imported.onnx, source.onnx)
    single = imported if subject.batch == 1 else subject.load(batch=1)
    onnx.save(single.onnx, source.onnx_batch_1)
    [sample] = evaluate(imported, samples(imported, seed, count=1))
    inputs = [sample.inputs[info.name] for info in imported.inputs]
    if source.program is not None:
        _save_program(imported, inputs, source.program)
    return Prepared(
        subject,
        source,
        inputs,
        [sample.float64[info.name] for info in imported.outputs],
        _mult_adds(imported),
    )


def _mult_adds(imported: ImportedModel) -> int:
    from tvm_mobilenet.models.cost import cost, cost_of_onnx

    if imported.module is None:
        return cost_of_onnx(imported.onnx).mult_adds
    return cost(imported.module, imported.inputs[0].shape).mult_adds


def _save_program(imported: ImportedModel, inputs: list[np.ndarray], path: Path) -> None:
    import torch

    arguments = tuple(torch.from_numpy(x) for x in inputs)
    module = imported.module
    if module is None:
        module = _traced(imported, arguments)
    torch.export.save(torch.export.export(module.eval(), arguments), path)


def _traced(imported: ImportedModel, arguments: tuple[torch.Tensor, ...]) -> torch.nn.Module:
    """The ONNX graph as a PyTorch module of plain operators, shapes and constants worked out."""
    import torch
    from torch.fx.experimental.proxy_tensor import make_fx

    from tvm_mobilenet.parity.reference import OnnxInTorch

    reference = OnnxInTorch(imported.onnx).eval()
    with torch.no_grad():
        return make_fx(reference, tracing_mode="real")(*arguments)
