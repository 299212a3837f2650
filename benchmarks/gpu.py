"""Everything that needs a GPU, in one command, for a machine with Python, a driver and PyTorch.

    python benchmarks/gpu.py pack gpu.tar.xz --python 3.12    # with a network: what to carry
    python benchmarks/gpu.py run --carried gpu.tar.xz -o out  # on the GPU machine
    python benchmarks/gpu.py check                            # what needs no GPU

`run` proves every model on the GPU, holds the CUDA graph against single launches, times each kernel
against the GPU's limits, searches knobs, and times whole networks against PyTorch (eager in
channels_last, the same under a CUDA graph, torch.compile) in turns. It writes OUT/gpu.json after
each step and OUT/gpu.md; started again, it goes on where it stopped, so that --limit can cut it.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import importlib.util
import json
import random
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from gpu_carried import ROOT, pack, unpack

MODELS = {
    "V1 1.0/224": ("mobilenet_v1", {}),
    "V1 0.25/128": ("mobilenet_v1", {"alpha": 0.25, "resolution": 128}),
    "V2": ("mobilenet_v2", {}),
    "V3-large": ("mobilenet_v3_large", {}),
}
BATCHES = (1, 8, 32, 128)
PRECISIONS = ("float32", "tf32", "float16")
NEEDED = ("tvm", "tvm_ffi", "torch", "numpy", "onnx", "onnxscript", "onnx_ir", "safetensors")
Step = Callable[[], dict[str, Any]]


class Results:
    """OUT/gpu.json: what each step gave; those that are there are not done again."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.path = directory / "gpu.json"
        self.document: dict[str, Any] = {"schema_version": 1, "steps": {}}
        if self.path.is_file():
            self.document = json.loads(self.path.read_text())

    def do(self, name: str, step: Step) -> None:
        """Do a step and keep what it gives, or why it failed: the others go on."""
        if self.document["steps"].get(name, {}).get("state") == "done":
            return
        sys.stderr.write(f"{name}\n")
        start = time.perf_counter()
        try:
            entry = {"state": "done", **step()}
        except Exception as error:
            traceback.print_exc()
            told = " ".join(f"{type(error).__name__}: {error}".split())
            entry = {"state": "failed", "error": told}
        entry["seconds"] = round(time.perf_counter() - start, 1)
        entry["date"] = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        self.document["steps"][name] = entry
        self.path.write_text(json.dumps(self.document, indent=1, default=str))
        self.path.with_suffix(".md").write_text(markdown(self.document))


@contextlib.contextmanager
def network(
    model: str, batch: int, precision: str, target: Any, *, cuda_graph: bool = True
) -> Iterator[tuple[Any, Any, Any]]:
    """A network compiled and loaded on the GPU: its model, what the compiler said, the module."""
    from tvm_mobilenet import frontend, targets
    from tvm_mobilenet.compiler_pass.pipeline import compile_model
    from tvm_mobilenet.deploy import cuda
    from tvm_mobilenet.deploy.library import export_library
    from tvm_mobilenet.runtime import manifest
    from tvm_mobilenet.runtime.cuda import DIRECTORY, CudaModule
    from tvm_mobilenet.tuning.records import applicable

    name, options = MODELS[model]
    architectures = cuda.check_options(target, None, precision)
    target = targets.at_precision(target, precision)
    imported = frontend.load_model(name, batch=batch, **options)
    with cuda.source_only(target):
        records = applicable(target, target.cores)
        compiled = compile_model(imported, target, records=records, cuda_graph=cuda_graph)
    with tempfile.TemporaryDirectory() as folder:
        library = export_library(compiled, Path(folder) / manifest.LIBRARY)
        code = cuda.assemble(compiled, architectures, progress=print_error)
        code.write(Path(folder) / DIRECTORY)
        digest = manifest.file_digest(library)
        module = CudaModule(library, digest, Path(folder) / DIRECTORY)
        yield imported, (compiled, code), module


def prove(model: str, precision: str, target: Any) -> dict[str, Any]:
    """Parity on the GPU; and the CUDA graph's outputs are those of single launches, to the bit."""
    import numpy as np

    from tvm_mobilenet.parity import judge, samples
    from tvm_mobilenet.parity.precision import at_precision
    from tvm_mobilenet.parity.reference import evaluate

    outputs = []
    for cuda_graph in (True, False):
        with network(model, 1, precision, target, cuda_graph=cuda_graph) as found:
            imported, (compiled, _), module = found
            references = at_precision(evaluate(imported, samples(imported)), imported, compiled)
            names = [output.name for output in imported.outputs]
            feeds = [[s.inputs[i.name] for i in imported.inputs] for s in references]
            outputs.append(
                [dict(zip(names, module(*feed), strict=True)) for feed in [*feeds, *feeds]]
            )
    with_graph, without = outputs
    report = judge(with_graph[: len(references)], references, precision)
    if not report.passed:
        raise AssertionError(report.summary())
    same = all(
        np.array_equal(a[name], b[name], equal_nan=True)
        for a, b in zip(with_graph, without, strict=True)
        for name in names
    )
    if not same:
        raise AssertionError("a CUDA graph changes the outputs")
    return {"summary": report.summary(), "graph_equals_launches": same}


def compare(model: str, batch: int, precision: str, target: Any) -> dict[str, Any]:
    """Ours against PyTorch's three ways, in turns; and each kernel against the GPU's limits."""
    import numpy as np

    from tvm_mobilenet.profiling import gpu

    with network(model, batch, precision, target) as (imported, (compiled, code), module):
        shape = imported.inputs[0].shape
        x = np.random.default_rng(0).standard_normal(shape).astype(imported.inputs[0].dtype)
        ours = module.enqueuer(x)
        calls = {"ours": ours, **pytorch(model, shape, precision)}
        timings = gpu.interleaved(calls)
        single = {name: gpu.latency(call) for name, call in calls.items()}
        launches = [dataclasses.asdict(launch) for launch in code.launches]
        kernels = gpu.kernel_times(ours, launches, compiled.operators, target.gpu, precision)
    best = min(timing.p50_us for name, timing in timings.items() if name != "ours")
    return {
        "launches": len(launches),
        "back_to_back": {name: dataclasses.asdict(t) for name, t in timings.items()},
        "single": {name: dataclasses.asdict(t) for name, t in single.items()},
        "speed_up_over_best_pytorch": best / timings["ours"].p50_us,
        "kernels": [dataclasses.asdict(kernel) for kernel in kernels],
    }


def pytorch(model: str, shape: tuple[int, ...], precision: str) -> dict[str, Callable[[], Any]]:
    """PyTorch eager in channels_last, that under a CUDA graph, and torch.compile."""
    import torch

    from tvm_mobilenet.models import create

    name, options = MODELS[model]
    module = create(name, **options)
    kind = torch.float16 if precision == "float16" else torch.float32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.benchmark = True
    module = module.eval().to("cuda", kind, memory_format=torch.channels_last)
    x = torch.randn(shape, device="cuda", dtype=kind).to(memory_format=torch.channels_last)

    def eager() -> Any:
        with torch.inference_mode():
            return module(x)

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):  # warm up as CUDA graphs ask for
        for _ in range(3):
            eager()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        eager()
    optimised = torch.compile(module, mode="max-autotune")

    def compiled() -> Any:
        with torch.inference_mode():
            return optimised(x)

    return {"eager": eager, "eager, CUDA graph": graph.replay, "torch.compile": compiled}


def tune(model: str, batch: int, target: Any, trials: int, logs: Path) -> dict[str, Any]:
    """Time random knobs of every operator alone and record those that beat the analytic choice."""
    import numpy as np
    import tvm

    from tvm_mobilenet.compiler_pass.schedule_operators import spec_of
    from tvm_mobilenet.errors import InputError
    from tvm_mobilenet.runtime.cuda import compiling
    from tvm_mobilenet.schedules.base import fingerprint, rules_for, scheduled
    from tvm_mobilenet.schedules.spec import to_json
    from tvm_mobilenet.tuning import records

    with network(model, batch, "float32", target) as (_, (compiled, _), _):
        operators = {o.symbol: o for o in compiled.operators if spec_of(compiled.kernels[o.symbol])}
    choice, device, kept, gains = random.Random(0), tvm.cuda(0), [], {}
    setting = records.setting_of(target, target.cores, device_name())

    def seconds(function: Any) -> np.ndarray:
        named = tvm.IRModule({"main": function.with_attr("global_symbol", "main")})
        with compiling(target.gpu.arch):
            library = tvm.compile(named, target=target.tvm_target())
        shapes = [([int(n) for n in p.ty.shape], str(p.ty.dtype)) for p in function.params]
        values = [tvm.runtime.tensor(np.ones(*shape), device) for shape in shapes]
        timer = library.mod.time_evaluator("main", device, number=100, repeat=5)
        return np.array(timer(*values).results)

    for symbol, operator in operators.items():
        spec = spec_of(compiled.kernels[symbol])
        rule = next(r for r in rules_for(target) if r.name == operator.schedule)
        base = scheduled(rule, spec, rule.analytic(spec, target), "analytic").function
        space = list(rule.space(spec, target))
        times = {}
        for knobs in choice.sample(space, min(trials, len(space))):
            function = scheduled(rule, spec, knobs, "tuned").function
            with contextlib.suppress(RuntimeError, InputError):  # more than the GPU has
                times[knobs] = seconds(function)
        before = seconds(base)
        if not times:
            continue
        best = min(times, key=lambda knobs: np.median(times[knobs]))
        gains[symbol] = float(np.median(before) / np.median(times[best]))
        if gains[symbol] > 1.02:
            function = scheduled(rule, spec, best, "tuned").function
            kept.append(
                records.Record(
                    operator=to_json(spec),
                    rule=rule.name,
                    knobs=dataclasses.asdict(best),
                    fingerprint=fingerprint(function),
                    setting=setting,
                    seconds=float(np.median(times[best])),
                    spread=(float(times[best].min()), float(times[best].max())),
                    baseline_seconds=float(np.median(before)),
                    in_network=None,
                    time=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                    seed=0,
                    space="template",
                )
            )
    directory = logs / target.name
    directory.mkdir(parents=True, exist_ok=True)
    records.update_records(directory, kept)
    return {"operators": len(operators), "records": len(kept), "gains": gains}


def device_name() -> str:
    """The GPU's own name."""
    import torch

    return str(torch.cuda.get_device_name(0))


def print_error(text: str) -> None:
    sys.stderr.write(f"  {text}\n")


def markdown(document: dict[str, Any]) -> str:
    """The results as tables, with device and dates; failures by their message."""
    steps = document["steps"]
    lines = ["# On a GPU", "", f"{document.get('device', 'no GPU: nothing was measured')}", ""]
    lines += ["| step | outcome | date |", "|---|---|---|"]
    for name, entry in steps.items():
        told = entry.get("summary") or entry.get("error") or _headline(entry)
        lines.append(f"| {name} | {entry['state']}: {told} | {entry['date']} |")
    for name, entry in steps.items():
        if "kernels" in entry:
            lines += ["", f"## Kernels, {name}", ""]
            lines += ["| kernel | launches | us | FLOPs | bandwidth |", "|---|---|---|---|---|"]
            lines += [
                f"| {k['kernel']} | {k['launches']} | {k['mean_us']:.2f} | "
                f"{_percent(k['flops_share'])} | {_percent(k['bandwidth_share'])} |"
                for k in entry["kernels"]
            ]
    return "\n".join(lines) + "\n"


def _headline(entry: dict[str, Any]) -> str:
    if "back_to_back" not in entry:
        shown = {k: v for k, v in entry.items() if k in ("operators", "records")}
        return ", ".join(f"{value} {name}" for name, value in shown.items())
    times = ", ".join(f"{name} {t['p50_us']:.1f} us" for name, t in entry["back_to_back"].items())
    return f"{times}; {entry['speed_up_over_best_pytorch']:.2f} times the best of PyTorch"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"


def run(args: argparse.Namespace) -> int:
    """All steps in order of worth, until the limit."""
    start = time.monotonic()
    if args.carried:
        unpack(args.carried)
    sys.path.insert(0, str(ROOT))
    from tvm_mobilenet import targets
    from tvm_mobilenet.runtime import cuda

    capability = cuda.compute_capability()
    target = targets.load(args.target or f"cuda-sm{capability}")
    results = Results(args.output)
    results.document["device"] = f"{device_name()}, sm_{capability}, {versions()}"
    logs = args.output / "tuning_logs"
    for name, step in steps(args, target, logs):
        if args.limit and time.monotonic() - start > args.limit:
            sys.stderr.write("the limit is reached; start it again to go on\n")
            return 1
        results.do(name, step)
    failed = [name for name, e in results.document["steps"].items() if e["state"] != "done"]
    sys.stdout.write(f"{results.path}: {len(failed)} steps failed\n")
    return 1 if failed else 0


def steps(args: argparse.Namespace, target: Any, logs: Path) -> Iterator[tuple[str, Step]]:
    """Names and steps: proof before speed, the smallest first."""
    for precision in args.precisions:
        for model in args.models:
            yield f"parity {model} {precision}", lambda m=model, p=precision: prove(m, p, target)
    for precision in args.precisions:
        for batch in args.batches:
            for model in args.models:
                yield (
                    f"compare {model} batch {batch} {precision}",
                    lambda m=model, b=batch, p=precision: compare(m, b, p, target),
                )
    for model in args.models:
        yield (
            f"tune {model} batch 1",
            lambda m=model: tune(m, 1, target, args.trials, logs),
        )


def versions() -> str:
    """What it ran on, in one line."""
    import torch
    import tvm

    return f"PyTorch {torch.__version__}, TVM {tvm.__version__}, Python {sys.version.split()[0]}"


def check(args: argparse.Namespace) -> int:
    """What is missing here, and one network through everything that a GPU is not needed for."""
    if args.carried:
        unpack(args.carried)
    sys.path.insert(0, str(ROOT))
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    from tvm_mobilenet import frontend, targets
    from tvm_mobilenet.compiler_pass.pipeline import compile_model
    from tvm_mobilenet.deploy import cuda
    from tvm_mobilenet.runtime import cuda as runtime_cuda

    target = targets.load(args.target or "cuda-sm90")
    name, options = MODELS["V1 0.25/128"]
    imported = frontend.load_model(name, **options)
    with cuda.source_only(target):
        compiled = compile_model(imported, target)
    code = cuda.assemble(compiled, (target.gpu.arch,), progress=print_error)
    document = {
        "schema_version": 1,
        "kind": "gpu-check",
        "missing": missing,
        "why_no_gpu": runtime_cuda.why_not_here(),
        "launches": len(code.launches),
        "steps": [name for name, _ in steps(args, target, args.output)],
    }
    json.dump(document, sys.stdout, indent=1)
    sys.stdout.write("\n")
    return 4 if missing else 0


def names(text: str) -> list[str]:
    """argparse type: names with commas between them."""
    return [part.strip() for part in text.split(",")]


def main(argv: list[str] | None = None) -> int:
    """Parse and run one of the three commands."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    packer = commands.add_parser("pack", help="put what a GPU machine lacks into one file")
    packer.add_argument("file", type=Path, metavar="FILE")
    packer.add_argument("--python", default="3.12", metavar="X.Y", help="of the GPU machine")
    packer.add_argument(
        "--extra", action="append", default=[], metavar="NAME==VERSION", help="one more package"
    )
    for name, text in (("run", "prove, time and tune"), ("check", "all but what needs a GPU")):
        command = commands.add_parser(name, help=text)
        command.add_argument("-o", "--output", type=Path, default=Path("gpu-results"))
        command.add_argument("--carried", type=Path, metavar="FILE", help="what `pack` wrote")
        command.add_argument("--target", help="default: cuda-sm of the GPU that is here")
        command.add_argument("--models", type=names, default=list(MODELS))
        command.add_argument(
            "--batches", type=lambda t: [int(n) for n in names(t)], default=BATCHES
        )
        command.add_argument("--precisions", type=names, default=list(PRECISIONS))
        command.add_argument("--trials", type=int, default=24, help="knobs an operator")
        command.add_argument(
            "--limit", type=float, metavar="SECONDS", help="start no step after it"
        )
    args = parser.parse_args(argv)
    return (
        pack(args.file, args.python, args.extra)
        if args.command == "pack"
        else {"run": run, "check": check}[args.command](args)
    )


if __name__ == "__main__":
    sys.exit(main())
