"""Times on a GPU, by CUDA events. Needs PyTorch with CUDA for events, streams and its profiler."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tvm_mobilenet.errors import NothingMeasuredError

if TYPE_CHECKING:
    from tvm_mobilenet.compiler_pass.operator_reports import OperatorReport
    from tvm_mobilenet.targets import GpuSpec

Call = Callable[[], Any]  # starts one inference and does not wait


@dataclass(frozen=True)
class Timing:
    """Microseconds a call: of `blocks` blocks of `calls` calls one after another."""

    p50_us: float
    p10_us: float
    p90_us: float
    calls: int
    blocks: int


@dataclass(frozen=True)
class KernelTime:
    """A kernel in the running network: mean time, and the least the GPU could take for its work.

    least_us: FLOPs at the peak of the precision, or bytes at the memory's bandwidth if that is
    more; `flops_share` and `bandwidth_share` are each over the time.
    """

    kernel: str
    launches: int
    mean_us: float
    least_us: float | None
    flops_share: float | None
    bandwidth_share: float | None


def interleaved(
    calls: Mapping[str, Call], *, blocks: int = 15, block_ms: float = 20.0
) -> dict[str, Timing]:
    """Time each contestant in blocks that take turns, so that a change of clock meets all."""
    found = block_times(calls, blocks=blocks, block_ms=block_ms)
    return {name: _timing(times, count) for name, (times, count) in found.items()}


def block_times(
    calls: Mapping[str, Call], *, blocks: int, block_ms: float
) -> dict[str, tuple[list[float], int]]:
    """For each contestant microseconds a call, by block, and how many calls a block has."""
    for call in calls.values():
        for _ in range(10):
            call()
    counts = {name: _count(call, block_ms) for name, call in calls.items()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(blocks):
        for name, call in calls.items():
            times[name].append(1e3 * _block_ms(call, counts[name]) / counts[name])
    return {name: (times[name], counts[name]) for name in calls}


def latency(call: Call, runs: int = 200) -> Timing:
    """Wall-clock time of single calls, each waited for: what one request takes."""
    import torch

    times = []
    for _ in range(runs):
        start = time.perf_counter()
        call()
        torch.cuda.synchronize()
        times.append(1e6 * (time.perf_counter() - start))
    return _timing(times, 1)


def kernel_times(
    call: Call,
    launches: Sequence[Mapping[str, Any]],
    operators: Sequence[OperatorReport],
    gpu: GpuSpec,
    precision: str,
    runs: int = 50,
) -> list[KernelTime]:
    """Every kernel's time within the network, as CUPTI records it through PyTorch's profiler.

    launches: of `kernels.json`. Raises NothingMeasuredError when the profiler saw no kernel.
    """
    import torch
    from torch.profiler import ProfilerActivity, profile

    for _ in range(10):
        call()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(runs):
            call()
        torch.cuda.synchronize()
    seen = {e.key: (e.count, e.device_time_total) for e in profiler.key_averages()}
    found = []
    for name in dict.fromkeys(launch["kernel"] for launch in launches):
        if name not in seen:
            continue
        count, total = seen[name]
        mine = [launch for launch in launches if launch["kernel"] == name]
        operator = operators[mine[0]["operator"]]
        alone = sum(launch["operator"] == mine[0]["operator"] for launch in launches) == 1
        mean = total / count
        compute = 2 * operator.mult_adds / gpu.peak_gflops(precision) / 1e3 if alone else None
        memory = operator.bytes / gpu.bandwidth_gb_s / 1e3 if alone else None
        known = compute is not None and memory is not None
        found.append(
            KernelTime(
                kernel=name,
                launches=len(mine),
                mean_us=mean,
                least_us=max(compute, memory) if known else None,  # type: ignore[type-var]
                flops_share=None if compute is None else compute / mean,
                bandwidth_share=None if memory is None else memory / mean,
            )
        )
    if not found:
        raise NothingMeasuredError("PyTorch's profiler saw none of the kernels")
    return found


def _count(call: Call, block_ms: float) -> int:
    """How many calls fill a block."""
    return max(1, round(10 * block_ms / max(_block_ms(call, 10), 1e-3)))


def _block_ms(call: Call, count: int) -> float:
    import torch

    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(count):
        call()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end))


def _timing(values: Sequence[float], calls: int) -> Timing:
    import numpy as np

    p10, p50, p90 = (float(value) for value in np.quantile(values, (0.1, 0.5, 0.9)))
    return Timing(p50, p10, p90, calls, len(values))
