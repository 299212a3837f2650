"""Networks that take turns on one device, so that what disturbs one disturbs all alike."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from tvm_mobilenet.remote.tracker import Grant

ROUNDS = 24
BLOCK_SECONDS = 0.02  # a block of runs of one network before the next network's turn
WARM_UP_RUNS = 2  # of a block: bring back what the other network pushed out of the caches
FEWEST_RUNS = 3

Run = Callable[[], np.ndarray]  # one run of a network: seconds per call, or of the whole


def take_turns(runs: Sequence[Run]) -> np.ndarray:
    """(networks, rounds, values): the medians of each network's block in each round."""
    lengths = []
    for run in runs:
        for _ in range(WARM_UP_RUNS):
            run()
        start = time.perf_counter()
        run()
        lengths.append(max(FEWEST_RUNS, int(BLOCK_SECONDS / (time.perf_counter() - start)) + 1))
    gc.collect()
    gc.disable()
    try:
        rounds: list[list[np.ndarray]] = [[] for _ in runs]
        for number in range(ROUNDS):
            order = list(range(len(runs)))
            for i in order if number % 2 == 0 else reversed(order):
                for _ in range(WARM_UP_RUNS):
                    runs[i]()
                rounds[i].append(np.median([runs[i]() for _ in range(lengths[i])], axis=0))
    finally:
        gc.enable()
    return np.array(rounds)


def race_here(
    libraries: Sequence[tuple[str, int]], inputs: Sequence[np.ndarray], timed: bool
) -> np.ndarray:
    """`take_turns` of libraries on this machine: of every operator call, or end to end."""
    from tvm_mobilenet.runtime import library
    from tvm_mobilenet.runtime.bundle import aligned
    from tvm_mobilenet.runtime.manifest import file_digest

    ffi = library.tvm_ffi()
    arrays = [aligned(array) for array in inputs]
    tensors = [ffi.from_dlpack(array) for array in arrays]
    modules, runs = [], []  # modules: kept alive
    for path, calls in libraries:
        module = library.Module(Path(path), file_digest(Path(path)))
        stamps = aligned(np.zeros(calls + 1, np.int64))
        main, main_timed = module.timed_entries()
        modules.append(module)
        if timed:
            runs.append(_stamped(main_timed, [*tensors, ffi.from_dlpack(stamps)], stamps))
        else:
            runs.append(_whole(main, tensors))
    return take_turns(runs)


def race_there(
    grant: Grant,
    libraries: Sequence[tuple[str, int]],
    inputs: Sequence[np.ndarray],
    timed: bool,
    threads: int,
    *,
    seconds: float,
) -> np.ndarray:
    """The same on a device over RPC, by the device's own clock: the connection is not timed.

    End to end is from before the first operator until after the last.
    """
    import tvm
    from tvm.runtime.vm import VirtualMachine

    from tvm_mobilenet.remote.session import session, uploaded, use_threads
    from tvm_mobilenet.runtime.library import TIMED_ENTRY

    with contextlib.ExitStack() as stack:
        connection = stack.enter_context(session(grant, seconds))
        use_threads(connection, threads)
        device = connection.cpu(0)
        arguments = [tvm.runtime.tensor(array, device=device) for array in inputs]
        runs = []
        for path, calls in libraries:
            module = stack.enter_context(uploaded(connection, Path(path)))
            stamps = tvm.runtime.tensor(np.zeros(calls + 1, np.int64), device=device)
            entry = VirtualMachine(module, device)[TIMED_ENTRY]
            runs.append(_stamped_there(entry, [*arguments, stamps], stamps, timed))
        return take_turns(runs)


def _stamped(entry: Any, arguments: Sequence[Any], stamps: np.ndarray) -> Run:
    def run() -> np.ndarray:
        entry(*arguments)
        return np.diff(stamps) / 1e9

    return run


def _stamped_there(entry: Any, arguments: Sequence[Any], stamps: Any, timed: bool) -> Run:
    def run() -> np.ndarray:
        entry(*arguments)
        read = stamps.numpy()
        return (np.diff(read) if timed else read[-1:] - read[:1]) / 1e9

    return run


def _whole(entry: Any, arguments: Sequence[Any]) -> Run:
    def run() -> np.ndarray:
        start = time.perf_counter_ns()
        entry(*arguments)
        return np.array([(time.perf_counter_ns() - start) / 1e9])

    return run
