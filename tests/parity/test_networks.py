"""The promise: every network, size and batch, in AVX-512 and in AVX2 code, within 3 times PyTorch.

Each network is imported once and compiled for both levels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tvm_mobilenet import frontend, targets
from tvm_mobilenet.deploy.builder import compile_and_prove
from tvm_mobilenet.parity.judge import FACTOR

pytestmark = [
    pytest.mark.slow,
    pytest.mark.needs_cpu("avx2", "fma", "avx512f", "avx512bw", "avx512dq", "avx512vl"),
]

PAPER_SIZES = [
    ("mobilenet_v1", {"alpha": alpha, "resolution": resolution})
    for alpha in (1.0, 0.75, 0.5, 0.25)
    for resolution in (224, 192, 160, 128)
]
OTHERS = [
    *[(name, {}) for name in ("mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large")],
    *[(name, {}) for name in ("mobilenet_v1_conv", "mobilenet_v1_shallow")],
    ("mobilenet_v1", {"alpha": 0.5, "resolution": 97, "batch": 3}),
    ("mobilenet_v1", {"alpha": 0.3, "resolution": 161, "classes": 11}),
    ("mobilenet_v2", {"alpha": 0.35, "resolution": 97, "batch": 3}),
    ("mobilenet_v3_small", {"alpha": 0.75, "resolution": 161, "batch": 3}),
    ("mobilenet_v3_large", {"alpha": 0.75, "resolution": 97, "batch": 1}),
    ("mobilenet_v1_conv", {"alpha": 0.25, "resolution": 97, "batch": 3}),
    ("mobilenet_v1_shallow", {"alpha": 0.5, "resolution": 161, "batch": 3}),
]


def label(case: tuple[str, dict[str, Any]]) -> str:
    return "-".join([case[0], *(f"{key}{value}" for key, value in case[1].items())])


@pytest.mark.parametrize("case", PAPER_SIZES + OTHERS, ids=label)
def test_error_is_at_most_three_times_pytorchs(
    case: tuple[str, dict[str, Any]], tmp_path: Path
) -> None:
    name, options = case
    imported = frontend.load_model(name, exporter="torchscript", **options)  # the faster one
    for target in ("x86-64-v4", "x86-64-v3"):
        proven = compile_and_prove(
            imported,
            targets.load(target),
            tmp_path / f"{target}.so",
            progress=lambda message: None,
        )
        report = proven.parity
        assert report.passed, f"{target}: {report.summary()}"
        assert all(row.ratio <= FACTOR for row in report.outputs)
        assert {operator.source for operator in proven.compiled.operators} == {"analytic"}
