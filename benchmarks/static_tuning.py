"""How far `tune --static` is to be trusted: predicted order of candidates against measured times.

    python benchmarks/static_tuning.py --keep DIR [--set held-out] [--kind depthwise]
        [--candidates 30] [--output out]

On this x86 machine, with AVX2 (QEMU executes it, AVX-512 it does not), one thread. For each of the
operators below the analytic choice and random candidates of its template's space are predicted
(`tvm_mobilenet.tuning.static`, llvm-mca's model of this CPU) and measured, cold, as `tune` does.
Per kind of operator: Spearman's rho, averaged over the operators, with a 95 % interval of
resampling candidates; regret, by how much the candidate predicted best is slower than the one
measured best; that of the choice which `tune --static` makes, the predicted best where it is
predicted to gain 5 %, else the analytic; and that of the analytic choice. Predictions are kept in
DIR. The threshold of 5 % was chosen by the first set; the held-out one was then measured, once,
with nothing changed. Depthwise and dense spaces have fewer than 30 candidates with AVX2: all of
them are taken.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import random
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from tvm.support.popen_pool import PopenPoolExecutor

from tvm_mobilenet import targets
from tvm_mobilenet.profiling import machine
from tvm_mobilenet.schedules.base import fingerprint
from tvm_mobilenet.schedules.spec import (
    RELU,
    RELU6,
    Activation,
    ConvSpec,
    DenseSpec,
    Spec,
    from_json,
    to_json,
)
from tvm_mobilenet.tuning.measure import LibraryBuilder, Measurer, local_runner
from tvm_mobilenet.tuning.static.predict import predict
from tvm_mobilenet.tuning.static.tune import LEAST_GAIN
from tvm_mobilenet.tuning.task import Candidate, Task, task_of

TARGET = "x86-64-v3"
RESAMPLES = 2000


HARDSWISH = Activation("hardswish")


def _depthwise(
    channels: int, size: int, kernel: int, stride: int, activation: Activation = RELU
) -> ConvSpec:
    shape = (1, channels, size, size, channels, (kernel, kernel), (stride, stride))
    return ConvSpec(*shape, (kernel // 2,) * 4, groups=channels, lanes=8, activation=activation)


# of MobileNet V1 at alpha 0.25 and 0.5, V2 and V3
FIRST: list[Spec] = [
    *(
        ConvSpec(1, i, size, size, o, lanes=8, activation=RELU)
        for i, size, o in ((16, 32, 32), (64, 16, 64), (128, 8, 128), (256, 4, 256))
    ),
    ConvSpec(1, 64, 20, 20, 128, lanes=8, activation=RELU),
    ConvSpec(1, 144, 28, 28, 32, lanes=8),
    ConvSpec(1, 96, 14, 14, 576, lanes=8, activation=RELU6),
    ConvSpec(1, 24, 28, 28, 72, lanes=8, activation=RELU),
    ConvSpec(1, 480, 14, 14, 112, lanes=8),
    ConvSpec(1, 160, 7, 7, 960, lanes=8, activation=RELU6),
    _depthwise(16, 64, 3, 1),
    _depthwise(64, 28, 3, 2),
    _depthwise(128, 14, 3, 1),
    _depthwise(144, 28, 3, 2),
    _depthwise(120, 28, 5, 1),
    _depthwise(672, 7, 5, 1),
    ConvSpec(1, 3, 128, 128, 8, (3, 3), (2, 2), (0, 0, 1, 1), input_layout="nchw", lanes=8),
    DenseSpec(1, 256, 1000, lanes=8),
]
# of V1 0.5/192, V2 and V3-small, none of them above
HELD_OUT: list[Spec] = [
    ConvSpec(1, 64, 24, 24, 128, lanes=8, activation=RELU),
    ConvSpec(1, 128, 12, 12, 256, lanes=8, activation=RELU),
    ConvSpec(1, 256, 6, 6, 512, lanes=8, activation=RELU),
    ConvSpec(1, 24, 56, 56, 144, lanes=8, activation=RELU6),
    ConvSpec(1, 192, 28, 28, 32, lanes=8),
    ConvSpec(1, 384, 14, 14, 64, lanes=8),
    ConvSpec(1, 576, 14, 14, 96, lanes=8),
    ConvSpec(1, 88, 28, 28, 24, lanes=8),
    ConvSpec(1, 40, 14, 14, 240, lanes=8, activation=HARDSWISH),
    ConvSpec(1, 96, 7, 7, 576, lanes=8, activation=HARDSWISH),
    _depthwise(64, 48, 3, 1),
    _depthwise(64, 48, 3, 2),
    _depthwise(256, 12, 3, 1),
    _depthwise(144, 56, 3, 1, RELU6),
    _depthwise(384, 14, 3, 1, RELU6),
    _depthwise(960, 7, 3, 1, RELU6),
    _depthwise(88, 28, 3, 1),
    _depthwise(96, 28, 5, 2, HARDSWISH),
    _depthwise(240, 14, 5, 1, HARDSWISH),
    _depthwise(576, 7, 5, 1, HARDSWISH),
]
SETS = {"first": FIRST, "held-out": HELD_OUT}


def choose(task: Task, count: int) -> list[Candidate]:
    """The analytic choice and distinct random candidates: different kernels, not only knobs."""
    space = list(task.space)
    random.Random(task.operator).shuffle(space)
    found: dict[str, Candidate] = {}
    for candidate in (task.baseline, *space):
        if len(found) < count:
            found.setdefault(
                fingerprint(candidate.rule.build(task.spec, candidate.knobs)), candidate
            )
    return list(found.values())


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Rank correlation; of ties the mean rank."""
    ranks = []
    for values in (a, b):
        _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
        ranks.append((np.cumsum(counts) - (counts - 1) / 2)[inverse])
    if min(np.ptp(r) for r in ranks) == 0:
        return 0.0
    return float(np.corrcoef(*ranks)[0, 1])


def interval(pairs: list[tuple[np.ndarray, np.ndarray]]) -> tuple[float, float]:
    """95 % of the mean rho over the operators, candidates drawn anew."""
    generator = np.random.default_rng(0)
    means = []
    for _ in range(RESAMPLES):
        drawn = [(p[i], m[i]) for p, m in pairs for i in [generator.integers(0, len(p), len(p))]]
        means.append(np.mean([spearman(p, m) for p, m in drawn]))
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def predicted(
    task: Task, candidates: list[Candidate], target: Any, cpu: str, keep: Path, pool: Any
) -> list[dict[str, float]]:
    """The parts of each prediction, kept in a file, so that a second run need not count again."""
    file = keep / f"{zlib.crc32(task.operator.encode()):08x}.json"
    done = json.loads(file.read_text()) if file.exists() else {}
    left = [candidate for candidate in candidates if candidate.key not in done]
    work = [(c.rule.build(task.spec, c.knobs), target, cpu) for c in left]
    for candidate, found in zip(left, pool.map_with_error_catching(_predict, work), strict=True):
        if not isinstance(found.value, dict):
            raise SystemExit(f"{task.label}: {candidate.key}: {found.value}")
        done[candidate.key] = found.value
        file.write_text(json.dumps(done))
    return [done[candidate.key] for candidate in candidates]


def _predict(work: tuple[Any, Any, str]) -> dict[str, float]:
    return dataclasses.asdict(predict(*work))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--keep", type=Path, required=True)
    parser.add_argument("--set", choices=SETS, default="first")
    parser.add_argument("--kind", help="operators of this kind alone")
    parser.add_argument("--candidates", type=int, default=30)
    parser.add_argument("--predict-only", action="store_true", help="measure nothing yet")
    parser.add_argument("--output", type=Path, metavar="FILE", help="all figures as JSON")
    args = parser.parse_args()
    args.keep.mkdir(parents=True, exist_ok=True)
    here = targets.load("native")
    caches = {"l1d_kib": here.l1d_kib, "l1d_ways": here.l1d_ways, "l2_kib": here.l2_kib}
    target = dataclasses.replace(targets.load(TARGET), cores=1, **caches)
    # LLVM's model of Sapphire Rapids is the latest of Intel's server CPUs
    cpu = "sapphirerapids" if here.mcpu == "emeraldrapids" else here.mcpu
    pool, work = PopenPoolExecutor(2, timeout=600), []
    specs = [spec for spec in SETS[args.set] if args.kind in (None, spec.kind)]
    if not specs:
        parser.error(f"no operator is {args.kind}")
    for spec in specs:
        task = task_of(from_json(to_json(spec)), target)
        candidates = choose(task, args.candidates)
        sys.stderr.write(f"predicting {len(candidates)} of {task.label}\n")
        work.append((task, candidates, predicted(task, candidates, target, cpu, args.keep, pool)))
    pool.shutdown()
    if args.predict_only:
        return 0
    measurer = Measurer(LibraryBuilder(2), local_runner(machine.pick_cpus(1)), target)
    rows: list[dict[str, Any]] = []
    with contextlib.closing(measurer):
        for task, candidates, predictions in work:
            sys.stderr.write(f"measuring {task.label}\n")
            kernels = [c.rule.build(task.spec, c.knobs) for c in candidates]
            times = [m.seconds for m in measurer.measure(kernels)]
            cycles = [p["code"] + p["lines"] for p in predictions]
            kept = [i for i, seconds in enumerate(times) if seconds is not None]
            rows.append(
                {
                    "kind": task.spec.kind,
                    "operator": str(task.spec),
                    "seconds": [times[i] for i in kept],
                    "cycles": [cycles[i] for i in kept],
                    "code": [predictions[i]["code"] for i in kept],
                    "lines": [predictions[i]["lines"] for i in kept],
                    "instructions": [predictions[i]["instructions"] for i in kept],
                }
            )
    report(rows, cpu)
    if args.output:
        document = {"cpu": machine.cpu_name(), "model": cpu, "target": TARGET, "operators": rows}
        args.output.write_text(json.dumps(document, indent=1) + "\n")
    return 0


def report(rows: list[dict[str, Any]], cpu: str) -> None:
    """The figures on stdout."""
    write = sys.stdout.write
    write(f"{TARGET} on {machine.cpu_name()}, llvm-mca's {cpu}; regret of the predicted best\n")
    write(f"{'kind':10} {'n':>3} {'rho':>6} {'regret':>7} {'choice':>7} {'analytic':>8} operator\n")
    kinds: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        seconds, cycles = np.array(row["seconds"]), np.array(row["cycles"])
        best = seconds.min()
        row["rho"] = spearman(cycles, seconds)
        row["regret"] = float(seconds[cycles.argmin()] / best - 1)
        row["analytic_regret"] = float(seconds[0] / best - 1)
        chosen = cycles.argmin() if cycles.min() <= cycles[0] * (1 - LEAST_GAIN) else 0
        row["choice_regret"] = float(seconds[chosen] / best - 1)
        kinds.setdefault(row["kind"], []).append(row)
        figures = f"{row['rho']:6.2f} {row['regret']:7.1%} {row['choice_regret']:7.1%}"
        figures += f" {row['analytic_regret']:8.1%}"
        write(f"{row['kind']:10} {len(seconds):3} {figures}  {row['operator']}\n")
    for kind, found in kinds.items():
        pairs = [(np.array(row["cycles"]), np.array(row["seconds"])) for row in found]
        low, high = interval(pairs)
        rho, regret, choice, analytic = (
            float(np.mean([row[name] for row in found]))
            for name in ("rho", "regret", "choice_regret", "analytic_regret")
        )
        write(
            f"{kind}: rho {rho:.2f} ({low:.2f} to {high:.2f}), regret {regret:.1%}, of the "
            f"choice {choice:.1%}, of the analytic choice {analytic:.1%}; {len(found)} operators, "
            f"{sum(len(row['seconds']) for row in found)} candidates\n"
        )


if __name__ == "__main__":
    raise SystemExit(main())
