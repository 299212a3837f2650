"""A kernel's numbers against the operator's plain function, before it may win.

The plain function (`schedules.plain`) is the operator as scalar loops over unpacked weights: the
meaning of a specification. Both run on the same random arguments, in a process of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tvm_mobilenet.schedules.spec import from_json
from tvm_mobilenet.tuning.measure import first_line
from tvm_mobilenet.tuning.task import Candidate, Task

if TYPE_CHECKING:
    from tvm_mobilenet.targets import TargetSpec

# Largest difference relative to the largest value. Two orders of summation of 10 000 products
# differ by 1e-6; a wrong tile, tap or channel by more than 1e-2.
TOLERANCE = 1e-5
TIMEOUT = 60.0


def faults(work: Sequence[tuple[Task, Candidate]], target: TargetSpec) -> list[str | None]:
    """For each candidate None, or in one line what is wrong with its numbers.

    A kernel that crashes or hangs here is wrong, too, and costs nobody else.
    """
    from tvm.support.popen_pool import PopenPoolExecutor, StatusKind

    pool = PopenPoolExecutor(max_workers=1, timeout=TIMEOUT)
    try:
        jobs = [(task.operator, c.rule.name, c.knobs, target) for task, c in work]
        return [
            _verdict(done.value)
            if done.status == StatusKind.COMPLETE
            else f"failed: {first_line(done.value)}"
            for done in pool.map_with_error_catching(_error, jobs)
        ]
    finally:
        pool.shutdown(wait=False)


def _verdict(error: float) -> str | None:
    if error <= TOLERANCE:  # NaN is not
        return None
    return f"its numbers differ from the plain function's by {error:.1e} of the largest value"


def _error(job: tuple[str, str, Any, TargetSpec]) -> float:
    """Largest difference between kernel and plain function over the largest value."""
    import tvm

    from tvm_mobilenet.schedules import plain
    from tvm_mobilenet.schedules.base import rules_for, scheduled

    operator, rule_name, knobs, target = job
    spec = from_json(operator)
    rule = next(rule for rule in rules_for(target) if rule.name == rule_name)
    kernel = scheduled(rule, spec, knobs, "tuned")
    meaning = plain.build(spec)
    module = tvm.IRModule(
        {
            "kernel": kernel.function.with_attr("global_symbol", "kernel"),
            "plain": meaning.with_attr("global_symbol", "plain"),
        }
    )
    compiled = tvm.compile(module, target=target.tvm_target()).mod
    generator = np.random.default_rng(0)
    shapes = [tuple(int(n) for n in p.ty.shape) for p in meaning.params]
    inputs = [generator.standard_normal(shape).astype("float32") for shape in shapes[:-1]]
    outputs = []
    for name, pack in (("plain", None), ("kernel", kernel.pack_weight)):
        arguments = list(inputs)
        if pack is not None:
            arguments[1] = pack(arguments[1])
        # NaN: what the kernel leaves unwritten is an error
        outputs.append(tvm.runtime.tensor(np.full(shapes[-1], np.nan, "float32")))
        compiled[name](*map(tvm.runtime.tensor, map(np.ascontiguousarray, arguments)), outputs[-1])
    expected, got = (output.numpy().astype("float64") for output in outputs)
    return float(np.abs(got - expected).max() / max(np.abs(expected).max(), 1e-30))
