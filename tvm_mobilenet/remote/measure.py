"""Timing one compiled function on one device; runs in the worker's process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvm_mobilenet.remote.errors import RemoteError
from tvm_mobilenet.remote.session import session, uploaded, use_threads
from tvm_mobilenet.remote.tracker import Grant

if TYPE_CHECKING:
    import numpy as np
    from tvm.rpc import RPCSession

_ENTRY = "main"  # the name that MetaSchedule gives a candidate's function
_FLUSH = "cache_flush_cpu_non_first_arg"  # TVM's: empties the caches of all but the first argument
_FILL = "tvm.contrib.random.random_fill_for_measure"  # of libtvm_runtime_extra; none is special

Argument = tuple[tuple[int, ...], str]  # a tensor's shape and dtype


@dataclass(frozen=True)
class Timing:
    """How to time: `repeat` means, each over `number` runs or as many as fill `min_repeat_ms`."""

    number: int
    repeat: int
    min_repeat_ms: int
    flush_caches: bool


@dataclass(frozen=True)
class Candidate:
    """A shared library whose function `main` takes tensors of these shapes and dtypes."""

    library: Path
    device_type: str
    arguments: tuple[Argument, ...]


def measure(
    grant: Grant, candidate: Candidate, timing: Timing, seconds: float, threads: int | None
) -> tuple[float, ...]:
    """Seconds a run, `timing.repeat` times, on the granted device; raises as `session` does."""
    with session(grant, seconds) as connection, uploaded(connection, candidate.library) as module:
        if threads is not None:
            use_threads(connection, threads)
        device = connection.device(candidate.device_type, 0)
        arguments = _filled(connection, device, candidate.arguments)
        evaluator = module.time_evaluator(
            _ENTRY,
            device,
            number=timing.number,
            repeat=timing.repeat,
            min_repeat_ms=timing.min_repeat_ms,
            f_preproc=_FLUSH if timing.flush_caches else "",
        )
        results = tuple(float(value) for value in evaluator(*arguments).results)
    if not all(value > 0 for value in results):
        raise RemoteError(f"{grant.address}: timed as {min(results)} s; raise number or repeat")
    return results


def _filled(connection: RPCSession, device: Any, arguments: Sequence[Argument]) -> list[Any]:
    """Tensors over there, filled by the device where its server can: uploading takes longer."""
    import tvm

    try:
        fill = connection.get_function(_FILL)
    except AttributeError:
        return [tvm.runtime.tensor(array, device=device) for array in values(arguments)]
    tensors = [tvm.runtime.empty(shape, dtype, device) for shape, dtype in arguments]
    for tensor in tensors:
        fill(tensor)
    return tensors


def values(arguments: Sequence[Argument]) -> list[np.ndarray]:
    """The same contents every time: normal noise for floats (zeros and denormals are slower or
    faster than what a network computes), small whole numbers otherwise."""
    import numpy as np

    generator = np.random.default_rng(0)
    made = []
    for shape, dtype in arguments:
        if np.dtype(dtype).kind == "f":
            made.append(generator.standard_normal(shape, np.float32).astype(dtype))
        else:
            made.append(generator.integers(0, 4, shape).astype(dtype))
    return made
