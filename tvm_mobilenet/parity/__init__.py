"""Proof that compiled code computes what PyTorch computes.

The judge of both is the model in PyTorch at float64. A compiled module passes when its error
against it is at most `judge.FACTOR` times that of PyTorch at float32, per output.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from tvm_mobilenet.parity.judge import ParityReport, Verdict, judge
from tvm_mobilenet.parity.samples import Sample, samples

if TYPE_CHECKING:
    import numpy as np

    from tvm_mobilenet.frontend import ImportedModel

__all__ = ["ParityReport", "Sample", "Verdict", "check", "judge", "samples"]


def check(
    run: Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]],
    imported: ImportedModel,
    inputs: Sequence[Mapping[str, np.ndarray]],
) -> ParityReport:
    """Judge `run` (inputs by name to outputs by name) on those inputs against the model itself."""
    from tvm_mobilenet.parity.reference import evaluate

    references = evaluate(imported, inputs)
    return judge([run(sample.inputs) for sample in references], references)
