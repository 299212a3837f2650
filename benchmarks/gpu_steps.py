"""The steps of gpu.py: a network on the GPU proven, timed against PyTorch, and tuned."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Step = Callable[[], dict[str, Any]]
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "V1 1.0/224": ("mobilenet_v1", {}),
    "V1 0.25/128": ("mobilenet_v1", {"alpha": 0.25, "resolution": 128}),
    "V2": ("mobilenet_v2", {}),
    "V3-large": ("mobilenet_v3_large", {}),
}
FIRST_BATCHES = (1, 32)  # those that the goals are for
EARLY = ", programmatic launches"  # which no shipped target asks for before they are measured


def steps(args: argparse.Namespace, target: Any, logs: Path) -> Iterator[tuple[str, Step]]:
    """Names and steps, by worth: proof of all, then the first model, then the others.

    `time` leaves out torch.compile, which takes minutes; `compare` does not. `compare tuned` is
    `compare` with what was found by `tune`.
    """
    from tvm_mobilenet import targets

    precisions = precisions_of(args, target)
    first, *others = args.models
    for precision in precisions:
        for model in args.models:
            cell = (model, 1, precision)
            yield f"parity {_name(cell)}", _do(prove, *cell, target)
    cells = [(first, b, p) for b in args.batches if b in FIRST_BATCHES for p in precisions]
    for cell in cells:
        if cell[1] != 1:
            yield f"parity {_name(cell)}", _do(prove, *cell, target)
        yield f"time {_name(cell)}", _do(compare, *cell, target, with_compile=False)
    if target.gpu.capability >= targets.PROGRAMMATIC_CAPABILITY:
        early = dataclasses.replace(
            target, gpu=dataclasses.replace(target.gpu, programmatic_launch=True)
        )
        for cell in cells:
            yield f"time {_name(cell)}{EARLY}", _do(prove_and_time, *cell, early)
    for cell in cells:
        yield f"compare {_name(cell)}", _do(compare, *cell, target)
    for cell in cells:
        yield f"tune {_name(cell)}", _do(tune, *cell, target, args, logs)
        yield f"compare tuned {_name(cell)}", _do(compare_tuned, *cell, target, logs)
    for batch in args.batches:
        for precision in precisions:
            for model in others if batch in FIRST_BATCHES else args.models:
                cell = (model, batch, precision)
                if batch != 1:
                    yield f"parity {_name(cell)}", _do(prove, *cell, target)
                yield f"compare {_name(cell)}", _do(compare, *cell, target)
    for precision in precisions:
        for model in others:
            cell = (model, 1, precision)
            yield f"tune {_name(cell)}", _do(tune, *cell, target, args, logs)
            yield f"compare tuned {_name(cell)}", _do(compare_tuned, *cell, target, logs)


def precisions_of(args: argparse.Namespace, target: Any) -> list[str]:
    """Those asked for that the GPU has."""
    return [p for p in args.precisions if p == "float32" or target.gpu.peak_gflops(p)]


def _name(cell: tuple[str, int, str]) -> str:
    model, batch, precision = cell
    return f"{model} batch {batch} {precision}"


def _do(function: Callable[..., dict[str, Any]], *arguments: Any, **options: Any) -> Step:
    return functools.partial(function, *arguments, **options)


def prove(model: str, batch: int, precision: str, target: Any) -> dict[str, Any]:
    """Parity on the GPU; and the CUDA graph's outputs are those of single launches, to the bit."""
    from tvm_mobilenet import targets
    from tvm_mobilenet.profiling import gpu_network

    at = targets.at_precision(target, precision)
    summary = gpu_network.prove(imported(model, batch), at, progress=print_error)
    return {"summary": summary, "graph_equals_launches": True}


def compare(
    model: str,
    batch: int,
    precision: str,
    target: Any,
    *,
    logs: Path | None = None,
    with_compile: bool = True,
) -> dict[str, Any]:
    """Ours against PyTorch's ways, in turns; and each kernel against the GPU's limits."""
    from tvm_mobilenet import targets
    from tvm_mobilenet.frontend.load import load_module
    from tvm_mobilenet.profiling import gpu_bench

    name, options = MODELS[model]
    at = targets.at_precision(target, precision)
    found = gpu_bench.compare(
        imported(model, batch),
        at,
        lambda: load_module(name, **options).module,
        logs=logs,
        with_compile=with_compile,
        progress=print_error,
    )
    return dataclasses.asdict(found)


def prove_and_time(model: str, batch: int, precision: str, target: Any) -> dict[str, Any]:
    """`compare` without torch.compile, of code that no `parity` step has proven."""
    proven = prove(model, batch, precision, target)
    found = compare(model, batch, precision, target, with_compile=False)
    return {"summary": proven["summary"], **found}


def compare_tuned(
    model: str, batch: int, precision: str, target: Any, logs: Path
) -> dict[str, Any]:
    """`compare` with the records in `logs`; nothing to do where there are none."""
    from tvm_mobilenet.tuning.records import directory_of

    if not (logs / directory_of(target) / "records.jsonl").is_file():
        return {"same": "tuning found nothing that is faster"}
    return compare(model, batch, precision, target, logs=logs)


def tune(
    model: str, batch: int, precision: str, target: Any, args: argparse.Namespace, logs: Path
) -> dict[str, Any]:
    """Search the knobs of every operator; what it writes is proven, and faster in the network."""
    from tvm_mobilenet import targets
    from tvm_mobilenet.tuning import gpu
    from tvm_mobilenet.tuning.records import SHIPPED, directory_of

    here = logs / directory_of(target)
    shipped = SHIPPED / directory_of(target) / "records.jsonl"
    if shipped.is_file() and not here.is_dir():  # so that these files can take their place
        here.mkdir(parents=True)
        shutil.copy(shipped, here)
    at = targets.at_precision(target, precision)
    found = gpu.tune(
        imported(model, batch), at, logs, trials=args.trials, seconds=args.tune_seconds
    )
    return {
        "operators": len(found.tasks),
        "records": found.records,
        "gains": {task.label: task.gain for task in found.tasks if task.gain},
        "summary": found.parity,
        "network_gain": found.speed_up.value if found.speed_up else None,
        "stopped": found.stopped,
    }


@functools.cache
def imported(model: str, batch: int) -> Any:
    """One of `MODELS` at a batch size."""
    from tvm_mobilenet import frontend

    name, options = MODELS[model]
    return frontend.load_model(name, batch=batch, **options)


def print_error(text: str) -> None:
    """Progress."""
    sys.stderr.write(f"  {text}\n")
