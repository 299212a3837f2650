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

from tvm_mobilenet.schedules.spec import from_json

if TYPE_CHECKING:
    from tvm_mobilenet.remote.tracker import Grant
    from tvm_mobilenet.targets import TargetSpec
    from tvm_mobilenet.tuning.device import Device

# Largest difference relative to the largest value. Two orders of summation of 10 000 products
# differ by 1e-6; a wrong tile, tap or channel by more than 1e-2.
TOLERANCE = 1e-5


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


def faults(jobs: Sequence[Job], device: Device) -> list[str | None]:
    """For each kernel None, or in one line what is wrong with its numbers.

    A kernel that crashes or hangs here is wrong, too, and costs nobody else.
    """
    return [_verdict(found) for found in device.errors(jobs)]


def _verdict(found: float | str) -> str | None:
    if isinstance(found, str):
        return f"checking its numbers failed: {found}"
    if found <= TOLERANCE:  # NaN is not
        return None
    return f"its numbers differ from the plain function's by {found:.1e} of the largest value"


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
    from tvm_mobilenet.schedules.base import rules_for, scheduled

    spec = from_json(job.operator)
    rule = next(rule for rule in rules_for(job.target) if rule.name == job.rule)
    kernel = scheduled(rule, spec, job.knobs, "tuned")
    meaning = plain.build(spec)
    generator = np.random.default_rng(0)
    shapes = [tuple(int(n) for n in p.ty.shape) for p in meaning.params]
    arguments = [generator.standard_normal(shape).astype("float32") for shape in shapes[:-1]]
    packed = list(arguments)
    if kernel.pack_weight is not None:
        for i in spec.weight_arguments:
            packed[i] = np.ascontiguousarray(kernel.pack_weight(packed[i], i))
    functions = {
        "kernel": kernel.function.with_attr("global_symbol", "kernel"),
        "plain": meaning.with_attr("global_symbol", "plain"),
    }
    return tvm.IRModule(functions), Pair(arguments, packed, shapes[-1])


def _outputs(module: Any, pair: Pair, device: Any) -> tuple[np.ndarray, np.ndarray]:
    import tvm

    found = []
    for name, arguments in (("plain", pair.plain), ("kernel", pair.kernel)):
        # NaN: what the kernel leaves unwritten is an error
        output = tvm.runtime.tensor(np.full(pair.output_shape, np.nan, "float32"), device=device)
        module[name](*(tvm.runtime.tensor(a, device=device) for a in arguments), output)
        found.append(output.numpy())
    return found[0], found[1]
