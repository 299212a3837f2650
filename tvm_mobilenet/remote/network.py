"""Running a whole network on one device; runs in the worker's process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvm_mobilenet.remote.errors import RemoteError
from tvm_mobilenet.remote.session import session, uploaded, use_threads
from tvm_mobilenet.remote.tracker import Grant
from tvm_mobilenet.runtime.library import TIMED_ENTRY

if TYPE_CHECKING:
    import numpy as np
    from tvm.runtime.vm import VirtualMachine

_ENTRY = "main"
_TIMED_SECONDS, _FEWEST_RUNS, _MOST_RUNS = 3.0, 5, 1000
_MOST_STAMPED_RUNS = 100


@dataclass(frozen=True)
class NetworkRun:
    """What a network gave on a device: outputs by sample and position, seconds of each timed run.

    `stamps`: the device's clock in nanoseconds before the first operator and after each one, (runs,
    operators + 1); None where not asked for. `others`: the runs of other entries.
    """

    outputs: tuple[tuple[np.ndarray, ...], ...]
    seconds: tuple[float, ...]
    stamps: np.ndarray | None = None
    others: tuple[NetworkRun, ...] = ()


def run_network(
    grant: Grant,
    library: Path,
    samples: Sequence[Sequence[np.ndarray]],
    *,
    threads: int,
    runs: int | None,
    operators: int | None,
    seconds: float,
    others: Mapping[str, Sequence[Sequence[np.ndarray]]] | None = None,
) -> NetworkRun:
    """Run a bundle's library on each sample (its inputs in order), then time it on the last one.

    runs: how many timed runs; None takes as many as fill three seconds, 5 to 1000.
    operators: how many the network has, to time each of them in at most 100 runs; None does not.
    seconds: for all of it, kept by the device. others: samples for other functions of the library
    by name, run and timed in the same way. Raises as `session.session` does.
    """
    from tvm.runtime.vm import VirtualMachine

    with session(grant, seconds) as connection, uploaded(connection, library) as module:
        use_threads(connection, threads)
        device = connection.cpu(0)
        machine = VirtualMachine(module, device)
        first = _run_entry(machine, _ENTRY, samples, device, runs)
        if operators is not None:
            some = min(len(first.seconds), _MOST_STAMPED_RUNS)
            first = replace(first, stamps=_stamps(machine, samples[-1], operators, device, some))
        rest = [
            _run_entry(machine, entry, its, device, runs) for entry, its in (others or {}).items()
        ]
        return replace(first, others=tuple(rest))


def _run_entry(
    machine: VirtualMachine,
    entry: str,
    samples: Sequence[Sequence[np.ndarray]],
    device: Any,
    runs: int | None,
) -> NetworkRun:
    """One function of the library on its samples, then timed on the last one."""
    import tvm

    outputs = []
    for inputs in samples:
        machine.set_input(entry, *(tvm.runtime.tensor(array, device=device) for array in inputs))
        machine.invoke_stateful(entry)
        outputs.append(tuple(_arrays(machine.get_outputs(entry))))
    once = machine.time_evaluator("invoke_stateful", device, number=1, repeat=1)
    estimate = float(once(entry).results[0])
    fitting = int(_TIMED_SECONDS / max(estimate, 1e-9))
    count = runs or min(max(fitting, _FEWEST_RUNS), _MOST_RUNS)
    timed = machine.time_evaluator("invoke_stateful", device, number=1, repeat=count)
    return NetworkRun(tuple(outputs), tuple(float(value) for value in timed(entry).results))


def _stamps(
    machine: VirtualMachine, inputs: Sequence[np.ndarray], operators: int, device: Any, runs: int
) -> np.ndarray:
    """See `compiler_pass.timed_entry`. Called as it is: `set_input` would copy the stamps."""
    import numpy as np
    import tvm

    try:
        entry = machine[TIMED_ENTRY]
    except AttributeError as error:
        raise RemoteError(f"the bundle has no {TIMED_ENTRY}; build it again") from error
    arrays = [tvm.runtime.tensor(array, device=device) for array in inputs]
    stamps = tvm.runtime.tensor(np.zeros(operators + 1, np.int64), device=device)
    rows = []
    for _ in range(runs + 1):  # the first warms up
        entry(*arrays, stamps)
        rows.append(stamps.numpy())
    return np.array(rows[1:])


def _arrays(result: Any) -> list[np.ndarray]:
    """One output or several, copied from the device."""
    return [tensor.numpy() for tensor in (result if isinstance(result, tuple) else (result,))]
