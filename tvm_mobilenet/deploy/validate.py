"""Numerical parity of a bundle, or of a model compiled for the occasion, from end to end."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tvm_mobilenet.errors import InputError
from tvm_mobilenet.imaging import Preprocessing
from tvm_mobilenet.parity import ParityReport, judge, samples
from tvm_mobilenet.parity.samples import Sample, load_samples
from tvm_mobilenet.runtime import Bundle, manifest

if TYPE_CHECKING:
    import numpy as np

    from tvm_mobilenet.deploy.builder import Progress
    from tvm_mobilenet.frontend import ImportedModel
    from tvm_mobilenet.targets import TargetSpec

FRESH_SEED = 1  # the samples stored in a bundle have seed 0


def validate_bundle(
    path: str | Path,
    *,
    against: ImportedModel | None = None,
    seed: int = FRESH_SEED,
    count: int = 2,
    images: Sequence[Path] = (),
    threads: int | None = None,
) -> ParityReport:
    """Run a bundle on its stored samples and hold the outputs against those of PyTorch stored too.

    With `against`, the model it was built from, also on `count` fresh samples and on `images`.
    Raises InputError when the bundle cannot be used here, or is of another model.
    """
    if images and against is None:
        raise InputError("images need the model too: their reference is worked out from it")
    with Bundle.load(path, threads=threads) as bundle:
        references = stored_samples(bundle)
        if against is not None:
            from tvm_mobilenet.parity.reference import evaluate

            _check_same_interface(bundle, against)
            stored = bundle.manifest["preprocessing"]
            fresh = samples(
                against,
                seed,
                count,
                images=images,
                preprocessing=None if stored is None else Preprocessing.from_json(stored),
            )
            references += evaluate(against, fresh)
        return judge([bundle.program.run(sample.inputs) for sample in references], references)


def validate_model(
    imported: ImportedModel,
    target: TargetSpec,
    *,
    seed: int = FRESH_SEED,
    count: int = 2,
    images: Sequence[Path] = (),
    threads: int | None = None,
    progress: Progress,
) -> ParityReport:
    """Compile a model for a target and judge it; nothing is kept."""
    from tvm_mobilenet.deploy.builder import compile_and_prove, preprocessing_of
    from tvm_mobilenet.tuning.records import applicable

    inputs: list[Mapping[str, np.ndarray]] = samples(
        imported,
        seed,
        count,
        images=images,
        preprocessing=preprocessing_of(imported),
    )
    with tempfile.TemporaryDirectory(prefix="tvm-mobilenet-") as folder:
        library = Path(folder) / manifest.LIBRARY
        return compile_and_prove(
            imported,
            target,
            library,
            inputs=inputs,
            threads=threads,
            records=applicable(target, threads or target.cores),
            progress=progress,
        ).parity


def stored_samples(bundle: Bundle) -> list[Sample]:
    """The samples in the bundle, with PyTorch's outputs for them."""
    return load_samples(
        bundle.path / manifest.SAMPLES,
        [tensor.name for tensor in bundle.inputs],
        [tensor.name for tensor in bundle.outputs],
    )


def _check_same_interface(bundle: Bundle, imported: ImportedModel) -> None:
    for kind, ours, theirs in (
        ("input", bundle.inputs, imported.inputs),
        ("output", bundle.outputs, imported.outputs),
    ):
        have, wanted = ([(t.name, t.shape, t.dtype) for t in ts] for ts in (ours, theirs))
        if have != wanted:
            raise InputError(
                f"{bundle.path} was not built from {imported.source}: its {kind}s are {have}, the "
                f"model's {wanted}"
            )
