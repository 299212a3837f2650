"""Whole networks: one model compiled with different knobs, timed against each other.

A kernel alone, however cold its buffers, is not the network: what the operator before left in the
caches counts too. So the finalists of all operators are compiled into networks, one network for
each place of the ranking, and their operators are timed where they run, by the bundle's second
entry (`compiler_pass.timed_entry`). The networks take turns in one process, so that a change of
the clock frequency or a busy neighbour hits all alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tvm_mobilenet.errors import NothingMeasuredError
from tvm_mobilenet.schedules.base import Recorded, fingerprint
from tvm_mobilenet.schedules.spec import Spec, to_json
from tvm_mobilenet.tuning.task import Candidate

if TYPE_CHECKING:
    from tvm_mobilenet.frontend import ImportedModel
    from tvm_mobilenet.targets import TargetSpec

ROUNDS = 24
BLOCK_SECONDS = 0.02  # a block of runs of one network before the next network's turn
WARM_UP_RUNS = 2  # of a block: bring back what the other network pushed out of the caches
TIMEOUT = 300.0

Choice = Mapping[str, Candidate]  # by operator; the analytic choice where there is none


@dataclass(frozen=True)
class Network:
    """A compiled network as a library, and the operator behind each of its calls, in order."""

    library: Path
    operators: tuple[str | None, ...]  # the specification's JSON; None: not ours
    compile_seconds: float


def compile_network(
    imported: ImportedModel, target: TargetSpec, choice: Choice, library: Path
) -> Network:
    """Compile with the given candidates. Raises as `deploy.library.export_library`."""
    from tvm_mobilenet.compiler_pass.pipeline import compile_model
    from tvm_mobilenet.compiler_pass.schedule_operators import spec_of
    from tvm_mobilenet.deploy.library import export_library

    def records(spec: Spec, rule: str) -> Recorded | None:
        candidate = choice.get(to_json(spec))
        if candidate is None or candidate.rule.name != rule:
            return None
        import dataclasses

        kernel = candidate.rule.build(spec, candidate.knobs)
        return Recorded(dataclasses.asdict(candidate.knobs), fingerprint(kernel))

    compiled = compile_model(imported, target, records=records)
    export_library(compiled, library)
    specs = [spec_of(compiled.kernels[operator.symbol]) for operator in compiled.operators]
    texts = tuple(None if spec is None else to_json(spec) for spec in specs)
    return Network(library, texts, compiled.seconds)


def time_operators(
    networks: Sequence[Network], imported: ImportedModel, cpus: Sequence[int]
) -> dict[str, np.ndarray]:
    """Seconds of every operator inside each network, all its calls together.

    By operator an array (networks, rounds): the medians of the rounds' runs.
    """
    times = _race(networks, imported, cpus, timed=True)  # (networks, rounds, calls)
    found: dict[str, np.ndarray] = {}
    for place, operator in enumerate(networks[0].operators):
        if operator is not None:
            found[operator] = found.get(operator, 0.0) + times[:, :, place]
    return found


def time_networks(
    networks: Sequence[Network], imported: ImportedModel, cpus: Sequence[int]
) -> np.ndarray:
    """Seconds of a run of each network, end to end: (networks, rounds), medians of the rounds."""
    return _race(networks, imported, cpus, timed=False)[:, :, 0]


def ratio(base: np.ndarray, other: np.ndarray, seed: int = 0) -> Any:
    """`profiling.statistics.speed_up` of rounds' medians: above 1, ``other`` is faster."""
    from tvm_mobilenet.profiling.statistics import speed_up

    return speed_up(base[:, None], other[:, None], seed)


def choose(times: np.ndarray) -> int:
    """Of the networks' times (networks, rounds) of one operator, the one to take; 0 is the base.

    Another than the base is taken only when it is faster outside noise: when the 95 % interval of
    the ratio of medians, over the same rounds, lies above 1.
    """
    medians = np.median(times, axis=1)
    for place in np.argsort(medians, kind="stable"):
        if place == 0:
            return 0
        if ratio(times[0], times[place]).low > 1.0:
            return int(place)
    return 0


def _race(
    networks: Sequence[Network], imported: ImportedModel, cpus: Sequence[int], *, timed: bool
) -> np.ndarray:
    """In a process of its own, pinned to the CPUs; NothingMeasuredError when that process dies."""
    from tvm.support.popen_pool import PopenWorker

    from tvm_mobilenet.parity import samples
    from tvm_mobilenet.tuning.measure import pin

    [sample] = samples(imported, count=1)
    inputs = [np.asarray(sample[info.name]) for info in imported.inputs]
    worker = PopenWorker(initializer=partial(pin, tuple(cpus)))
    try:
        libraries = [(str(n.library), len(n.operators)) for n in networks]
        worker.send(_take_turns, (libraries, inputs, timed), timeout=TIMEOUT)
        result: np.ndarray = worker.recv()
    except (TimeoutError, ChildProcessError, RuntimeError) as error:
        line = str(error).strip().splitlines()
        raise NothingMeasuredError(
            f"running the compiled networks failed: {line[-1] if line else error!r}"
        ) from error
    finally:
        worker.kill()
    return result


def _take_turns(
    libraries: Sequence[tuple[str, int]], inputs: Sequence[np.ndarray], timed: bool
) -> np.ndarray:
    """(networks, rounds, calls or 1) seconds; runs in the worker."""
    import gc
    import time

    from tvm_mobilenet.runtime import library
    from tvm_mobilenet.runtime.bundle import aligned
    from tvm_mobilenet.runtime.manifest import file_digest

    ffi, clock = library.tvm_ffi(), time.perf_counter
    arrays = [aligned(array) for array in inputs]
    tensors = [ffi.from_dlpack(array) for array in arrays]
    modules, runs = [], []  # modules: kept alive
    for path, calls in libraries:
        module = library.Module(Path(path), file_digest(Path(path)))
        stamps = aligned(np.zeros(calls + 1, np.int64))
        main, main_timed = module.timed_entries()
        modules.append((module, stamps))
        if timed:
            runs.append(_timed_run(main_timed, [*tensors, ffi.from_dlpack(stamps)], stamps))
        else:
            runs.append(_plain_run(main, tensors))
    lengths = []
    for run in runs:
        for _ in range(WARM_UP_RUNS):
            run()
        start = clock()
        run()
        lengths.append(max(3, int(BLOCK_SECONDS / (clock() - start)) + 1))
    gc.collect()
    gc.disable()
    rounds: list[list[np.ndarray]] = [[] for _ in runs]
    for number in range(ROUNDS):
        order = range(len(runs)) if number % 2 == 0 else reversed(range(len(runs)))
        for i in order:
            for _ in range(WARM_UP_RUNS):
                runs[i]()
            block = [runs[i]() for _ in range(lengths[i])]
            rounds[i].append(np.median(block, axis=0))
    return np.array(rounds)


def _timed_run(entry: Any, arguments: Sequence[Any], stamps: np.ndarray) -> Callable[[], Any]:
    def run() -> np.ndarray:
        entry(*arguments)
        return np.diff(stamps) / 1e9

    return run


def _plain_run(entry: Any, arguments: Sequence[Any]) -> Callable[[], Any]:
    import time

    def run() -> np.ndarray:
        start = time.perf_counter_ns()
        entry(*arguments)
        return np.array([(time.perf_counter_ns() - start) / 1e9])

    return run
