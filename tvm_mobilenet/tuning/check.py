"""A kernel's numbers against the operator's plain function, before it may win.

The plain function (`schedules.plain`) is the operator as scalar loops over unpacked weights: the
meaning of a specification. Both run on the device, on the same random arguments.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tvm_mobilenet.schedules.spec import Spec, from_json

if TYPE_CHECKING:
    from tvm import tirx

    from tvm_mobilenet.remote.tracker import Grant
    from tvm_mobilenet.schedules.base import Scheduled
    from tvm_mobilenet.targets import TargetSpec
    from tvm_mobilenet.tuning.device import Checker

# Largest difference relative to the largest value. Two orders of summation of 10 000 products
# differ by 1e-6; a wrong tile, tap or channel by more than 1e-2.
TOLERANCE = 1e-5
# With factors or results rounded to 11 bits; a wrong tile is still further off.
ROUNDED_TOLERANCE = 4e-3


@dataclass(frozen=True)
class Job:
    """A kernel to check: the specification's JSON, a rule's name and knobs for it."""

    operator: str
    rule: str
    knobs: Any
    target: TargetSpec


@dataclass(frozen=True)
class Pair:
    """Arguments, without the output, of the library's functions `plain` and `kernel`."""

    plain: list[np.ndarray]
    kernel: list[np.ndarray]
    output_shape: tuple[int, ...]


def faults(jobs: Sequence[Job], device: Checker) -> list[str | None]:
    """For each kernel None, or in one line what is wrong with its numbers.

    A kernel that crashes or hangs here is wrong, too, and costs nobody else.
    """
    return [_verdict(job, found) for job, found in zip(jobs, device.errors(jobs), strict=True)]


def _verdict(job: Job, found: float | str) -> str | None:
    if isinstance(found, str):
        return f"checking its numbers failed: {found}"
    exact = from_json(job.operator).precision == "float32"
    tolerance = TOLERANCE if exact else ROUNDED_TOLERANCE
    if found <= tolerance:  # NaN is not
        return None
    return f"its numbers are off by {found:.1e} of the largest value"


def error_here(job: Job) -> float:
    """`difference` of kernel and plain function, compiled and run in this process."""
    import tvm

    module, pair = _module(job)
    compiled = tvm.compile(module, target=job.target.tvm_target()).mod
    return difference(*_outputs(compiled, pair, tvm.cpu()))


def compile_pair(job: Job, library: Path, compiler: Any) -> Pair:
    """Both functions as a library, and their arguments."""
    import tvm

    module, pair = _module(job)
    compiled = tvm.compile(module, target=job.target.tvm_target())
    compiled.export_library(str(library), fcompile=compiler)
    return pair


def outputs_there(
    grant: Grant, library: Path, pair: Pair, *, seconds: float
) -> tuple[np.ndarray, np.ndarray]:
    """What both functions of a library give on a device over RPC."""
    from tvm_mobilenet.remote.session import session, uploaded

    with session(grant, seconds) as connection, uploaded(connection, library) as module:
        return _outputs(module, pair, connection.cpu(0))


def difference(expected: np.ndarray, got: np.ndarray) -> float:
    """The largest difference over the largest value."""
    scale = max(float(np.abs(expected).max()), 1e-30)
    return float(np.abs(got.astype("float64") - expected.astype("float64")).max() / scale)


def _module(job: Job) -> tuple[Any, Pair]:
    import tvm

    from tvm_mobilenet.schedules import plain

    spec = from_json(job.operator)
    kernel = kernel_of(job)
    meaning = plain.build(spec)
    arguments = random_arguments(meaning)
    functions = {
        "kernel": kernel.function.with_attr("global_symbol", "kernel"),
        "plain": meaning.with_attr("global_symbol", "plain"),
    }
    shape = tuple(int(n) for n in meaning.params[-1].ty.shape)
    return tvm.IRModule(functions), Pair(arguments, packed(spec, kernel, arguments), shape)


def kernel_of(job: Job) -> Scheduled:
    """The kernel to check."""
    from tvm_mobilenet.schedules.base import rules_for, scheduled

    rule = next(rule for rule in rules_for(job.target) if rule.name == job.rule)
    return scheduled(rule, from_json(job.operator), job.knobs, "tuned")


def random_arguments(meaning: tirx.PrimFunc) -> list[np.ndarray]:
    """Equal ones for every call, for all of a plain function's parameters but its result."""
    generator = np.random.default_rng(0)
    return [
        generator.standard_normal([int(n) for n in p.ty.shape], "float32").astype(str(p.ty.dtype))
        for p in meaning.params[:-1]
    ]


def packed(spec: Spec, kernel: Scheduled, arguments: Sequence[np.ndarray]) -> list[np.ndarray]:
    """A plain function's arguments as the kernel reads them."""
    found = list(arguments)
    if kernel.pack_weight is not None:
        for i in spec.weight_arguments:
            found[i] = np.ascontiguousarray(kernel.pack_weight(found[i], i))
    return found


def _outputs(module: Any, pair: Pair, device: Any) -> tuple[np.ndarray, np.ndarray]:
    import tvm

    found = []
    for name, arguments in (("plain", pair.plain), ("kernel", pair.kernel)):
        # NaN: what the kernel leaves unwritten is an error
        output = tvm.runtime.tensor(np.full(pair.output_shape, np.nan, "float32"), device=device)
        module[name](*(tvm.runtime.tensor(a, device=device) for a in arguments), output)
        found.append(output.numpy())
    return found[0], found[1]
