"""How fast tuning gets where: our templates against MetaSchedule's generated space.

    python benchmarks/tuning.py --trials 32 --operators 4 --output out

For the heaviest convolutions of a network, each searched alone with equal trials and the same
builder and runner, on one thread and on warm buffers (MetaSchedule's searches know no others). The
sketch space gets the same convolution, bias and activation on NCHW, as TVM lowers it. Prints the
best so far against trials and seconds, trials a minute, where the seconds went, and the gap
between the analytic choice and the best found; writes tuning.json and tuning.png.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from tvm import relax, tirx

from tvm_mobilenet import frontend, targets
from tvm_mobilenet.compiler_pass.schedule_rest import lower_rest, rest_of
from tvm_mobilenet.profiling import machine
from tvm_mobilenet.schedules.base import fingerprint
from tvm_mobilenet.schedules.spec import ConvSpec
from tvm_mobilenet.tuning.measure import LibraryBuilder, Measurer, local_runner
from tvm_mobilenet.tuning.ranking import LearnedRanking
from tvm_mobilenet.tuning.records import setting_of
from tvm_mobilenet.tuning.search import TaskSearch
from tvm_mobilenet.tuning.session import Place
from tvm_mobilenet.tuning.sketch import tune_function
from tvm_mobilenet.tuning.task import Task, tasks_of

Curve = list[tuple[float, float]]  # after each trial: seconds since the start, best seconds so far


def convolution(spec: ConvSpec, target: targets.TargetSpec) -> tirx.PrimFunc:
    """The operator as TVM lowers it on NCHW: convolution, bias and activation in one function."""
    builder = relax.BlockBuilder()
    shape = (spec.batch, spec.in_channels, spec.in_height, spec.in_width)
    weight = (spec.out_channels, spec.in_channels // spec.groups, *spec.kernel)
    kinds = [relax.TensorType(s, "float32") for s in (shape, weight, (1, weight[0], 1, 1))]
    x, w, bias = (relax.Var(n, t) for n, t in zip(("x", "w", "bias"), kinds, strict=True))
    with builder.function("main", [x, w, bias]):
        with builder.dataflow():
            y = builder.emit(
                relax.op.nn.conv2d(
                    x,
                    w,
                    strides=list(spec.stride),
                    padding=list(spec.padding),
                    groups=spec.groups,
                )
            )
            y = builder.emit(relax.op.add(y, bias))
            if spec.activation.name == "clip":
                y = builder.emit(relax.op.nn.relu(y))
            out = builder.emit_output(y)
        builder.emit_func_output(out)
    with target.tvm_target():
        [function] = rest_of(lower_rest(builder.get())).values()
    return function


def template_curve(task: Task, place: Place, measurer: Measurer, trials: int) -> Curve:
    """Best so far of our templates."""
    search, ranking = TaskSearch(task, 0), LearnedRanking(place.target, 0)
    start, curve, seen = time.perf_counter(), [], set()
    while len(curve) < trials:
        ranking.learn([search])
        proposed = search.propose(min(8, trials - len(curve)), ranking)
        if not proposed:
            break
        kernels = {}
        for candidate in proposed:
            kernel = candidate.rule.build(task.spec, candidate.knobs)
            if (identity := fingerprint(kernel)) not in seen:
                seen.add(identity)
                kernels[candidate.key] = (candidate, kernel)
        results = measurer.measure([kernel for _, kernel in kernels.values()])
        for (candidate, _), result in zip(kernels.values(), results, strict=True):
            search.record(candidate, result)
            curve.append((time.perf_counter() - start, search.best_seconds or float("nan")))
    return curve


def sketch_curve(
    function: tirx.PrimFunc, place: Place, measurer: Measurer, trials: int
) -> tuple[float, Curve]:
    """The fallback's seconds, and the best so far of MetaSchedule's space."""
    start = time.perf_counter()
    best, curve = float("inf"), []

    def on_trial(seconds: float | None) -> None:
        nonlocal best
        best = min(best, seconds or best)
        curve.append((time.perf_counter() - start, best))

    outcome = tune_function(
        "main", function, place, measurer.builder, measurer.runner, trials=trials, on_trial=on_trial
    )
    return outcome.baseline_seconds, curve


def total(curves: list[tuple[int, Curve]], trial: int) -> tuple[float, float]:
    """Seconds spent and seconds of the operators, after that many trials of each."""
    ends = [(count, curve[min(trial, len(curve)) - 1]) for count, curve in curves if curve]
    return sum(t for _, (t, _) in ends), sum(count * best for count, (_, best) in ends)


def draw(found: dict[str, Any], path: Path) -> None:
    """Both curves against trials and against seconds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), sharey=True)
    for name in ("template", "sketch"):
        points = found[name]["total"]
        for axis, x in ((axes[0], range(1, len(points) + 1)), (axes[1], [t for t, _ in points])):
            axis.plot(x, [1e3 * best for _, best in points], label=name)
    axes[0].axhline(1e3 * found["analytic_seconds"], ls=":", color="grey", label="analytic")
    for axis, label in ((axes[0], "trials of each operator"), (axes[1], "seconds in all")):
        axis.set_xlabel(label)
        axis.set_yscale("log")
        axis.grid(alpha=0.3, which="both")
    axes[0].set_ylabel("operators together, ms")
    axes[0].legend()
    figure.suptitle(f"{found['network']}: {found['operators']} heaviest convolutions, one thread")
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", nargs="?", default="mobilenet_v1")
    parser.add_argument("--alpha", type=float, default=1.0)
    parser.add_argument("--resolution", type=int, default=224)
    parser.add_argument("--target", default="native")
    parser.add_argument("--trials", type=int, default=32, help="of each operator and space")
    parser.add_argument("--operators", type=int, default=4, help="how many, the heaviest first")
    parser.add_argument("--output", type=Path, default=Path("tuning-benchmark"))
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)

    target = dataclasses.replace(targets.load(args.target), cores=1)
    imported = frontend.load_model(args.model, alpha=args.alpha, resolution=args.resolution)
    tasks = [task for task in tasks_of(imported, target) if isinstance(task.spec, ConvSpec)]
    tasks.sort(key=lambda task: task.count * task.spec.mult_adds, reverse=True)
    tasks = tasks[: args.operators]
    cpus = machine.pick_cpus(1)
    curves: dict[str, list[tuple[int, Curve]]] = {"template": [], "sketch": []}
    analytic = 0.0
    with tempfile.TemporaryDirectory() as folder:
        place = Place(target, setting_of(target, 1, machine.cpu_name()), Path(folder))
        measurer = Measurer(LibraryBuilder(2), local_runner(cpus), target, cold=False)
        with contextlib.closing(measurer):
            for task in tasks:
                sys.stderr.write(f"{task.count} x {task.label}: template\n")
                curve = template_curve(task, place, measurer, args.trials)
                curves["template"].append((task.count, curve))
                analytic += task.count * curve[0][1]
            spent = dict(measurer.spent)
            for task in tasks:
                sys.stderr.write(f"{task.count} x {task.label}: sketch\n")
                function = convolution(task.spec, target)
                _, curve = sketch_curve(function, place, measurer, args.trials)
                curves["sketch"].append((task.count, curve))
    found: dict[str, Any] = {
        "network": f"{args.model} {args.alpha}/{args.resolution}",
        "cpu": machine.cpu_name(),
        "tvm": tvm.__version__,
        "operators": len(tasks),
        "trials": args.trials,
        "analytic_seconds": analytic,
    }
    for name, each in curves.items():
        longest = max((len(curve) for _, curve in each), default=0)
        found[name] = {
            "total": [total(each, n) for n in range(1, longest + 1)],
            "operators": [
                {"operator": t.label, "count": n, "curve": c}
                for t, (n, c) in zip(tasks, each, strict=True)
            ],
        }
    (args.output / "tuning.json").write_text(json.dumps(found, indent=1) + "\n")
    draw(found, args.output / "tuning.png")
    report(found, spent)
    return 0


def report(found: dict[str, Any], spent: dict[str, float]) -> None:
    """The figures on stdout."""
    write = sys.stdout.write
    write(f"{found['network']}, {found['operators']} operators, {found['cpu']}\n")
    write(f"analytic: {1e3 * found['analytic_seconds']:.3f} ms\n")
    for name in ("template", "sketch"):
        points = found[name]["total"]
        made = sum(len(entry["curve"]) for entry in found[name]["operators"])
        seconds, best = points[-1]
        write(
            f"{name}: {1e3 * best:.3f} ms after {made} trials in {seconds:.0f} s "
            f"({60 * made / seconds:.0f} a minute)\n"
        )
        marks = [n for n in (1, 2, 4, 8, 16, 32) if n <= len(points)]
        shown = ", ".join(f"{n}: {1e3 * points[n - 1][1]:.3f}" for n in marks)
        write(f"  best so far in ms by trials of each operator: {shown}\n")
    gap = found["analytic_seconds"] / found["template"]["total"][-1][1] - 1
    write(f"the best template found is {gap:.1%} faster than the analytic choice, warm and alone\n")
    total_seconds = found["template"]["total"][-1][0]
    rest = total_seconds - sum(spent.values())
    shares = ", ".join(f"{k} {v / total_seconds:.0%}" for k, v in spent.items())
    write(f"template seconds: {shares}, choosing and writing kernels {rest / total_seconds:.0%}\n")
    if not np.isfinite(gap):
        raise SystemExit("nothing was measured")


if __name__ == "__main__":
    raise SystemExit(main())
