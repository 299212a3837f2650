"""The steps of gpu.py: a network on the GPU proven, timed against PyTorch, and tuned."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "V1 1.0/224": ("mobilenet_v1", {}),
    "V1 0.25/128": ("mobilenet_v1", {"alpha": 0.25, "resolution": 128}),
    "V2": ("mobilenet_v2", {}),
    "V3-large": ("mobilenet_v3_large", {}),
}


def prove(model: str, precision: str, target: Any) -> dict[str, Any]:
    """Parity on the GPU; and the CUDA graph's outputs are those of single launches, to the bit."""
    from tvm_mobilenet import targets
    from tvm_mobilenet.profiling import gpu_network

    at = targets.at_precision(target, precision)
    summary = gpu_network.prove(imported(model, 1), at, progress=print_error)
    return {"summary": summary, "graph_equals_launches": True}


def compare(model: str, batch: int, precision: str, target: Any) -> dict[str, Any]:
    """Ours against PyTorch's three ways, in turns; and each kernel against the GPU's limits."""
    from tvm_mobilenet import targets
    from tvm_mobilenet.frontend.load import load_module
    from tvm_mobilenet.profiling import gpu_bench

    name, options = MODELS[model]
    at = targets.at_precision(target, precision)
    found = gpu_bench.compare(
        imported(model, batch),
        at,
        lambda: load_module(name, **options).module,
        progress=print_error,
    )
    return dataclasses.asdict(found)


def tune(
    model: str, batch: int, precision: str, target: Any, trials: int, logs: Path
) -> dict[str, Any]:
    """Search the knobs of every operator; what it writes is proven, and faster in the network."""
    from tvm_mobilenet import targets
    from tvm_mobilenet.tuning import gpu

    at = targets.at_precision(target, precision)
    found = gpu.tune(imported(model, batch), at, logs, trials=trials)
    return {
        "operators": len(found.tasks),
        "records": found.records,
        "gains": {task.label: task.gain for task in found.tasks if task.gain},
        "summary": found.parity,
        "network_gain": found.speed_up.value if found.speed_up else None,
    }


def imported(model: str, batch: int) -> Any:
    """One of `MODELS` at a batch size."""
    from tvm_mobilenet import frontend

    name, options = MODELS[model]
    return frontend.load_model(name, batch=batch, **options)


def print_error(text: str) -> None:
    """Progress."""
    sys.stderr.write(f"  {text}\n")
