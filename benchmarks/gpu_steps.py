"""The steps of gpu.py: a network on the GPU proven, timed against PyTorch, and tuned."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import random
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "V1 1.0/224": ("mobilenet_v1", {}),
    "V1 0.25/128": ("mobilenet_v1", {"alpha": 0.25, "resolution": 128}),
    "V2": ("mobilenet_v2", {}),
    "V3-large": ("mobilenet_v3_large", {}),
}
DEVICE = "cuda"  # PyTorch's name of it
RUNS = 100  # of a kernel in a measurement
LEAST_GAIN = 1.02  # of a kernel alone, over the analytic choice


@contextlib.contextmanager
def network(
    model: str,
    batch: int,
    precision: str,
    target: Any,
    *,
    cuda_graph: bool = True,
    logs: Path | None = None,
) -> Iterator[tuple[Any, Any, Any]]:
    """A network compiled and loaded on the GPU: its model, what the compiler said, the module.

    logs: tuning records in place of the shipped ones.
    """
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
        records = applicable(target, target.cores, logs)
        compiled = compile_model(imported, target, records=records, cuda_graph=cuda_graph)
    with tempfile.TemporaryDirectory() as folder:
        library = export_library(compiled, Path(folder) / manifest.LIBRARY)
        code = cuda.assemble(compiled, architectures, progress=print_error)
        code.write(Path(folder) / DIRECTORY)
        digest = manifest.file_digest(library)
        module = CudaModule(library, digest, Path(folder) / DIRECTORY)
        yield imported, (compiled, code), module


def prove(
    model: str, precision: str, target: Any, batch: int = 1, logs: Path | None = None
) -> dict[str, Any]:
    """Parity on the GPU; and the CUDA graph's outputs are those of single launches, to the bit."""
    import numpy as np

    from tvm_mobilenet.parity import judge, samples
    from tvm_mobilenet.parity.precision import at_precision
    from tvm_mobilenet.parity.reference import evaluate

    outputs = []
    for cuda_graph in (True, False):
        found = network(model, batch, precision, target, cuda_graph=cuda_graph, logs=logs)
        with found as (imported, (compiled, _), module):
            if cuda_graph:
                exact = evaluate(imported, samples(imported))
                references = at_precision(exact, imported, compiled)
            names = [output.name for output in imported.outputs]
            feeds = [[s.inputs[i.name] for i in imported.inputs] for s in references]
            outputs.append(  # the first is launched singly, and recorded
                [dict(zip(names, module(*feed), strict=True)) for feed in [*feeds, *feeds]]
            )
    with_graph, without = outputs
    for part in (with_graph[: len(references)], with_graph[len(references) :]):
        report = judge(part, references, precision)
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
        theirs, failed = pytorch(model, shape, precision)
        calls = {"ours": ours, **theirs}
        timings = gpu.interleaved(calls)
        single = {name: gpu.latency(call) for name, call in calls.items()}
        launches = [dataclasses.asdict(launch) for launch in code.launches]
        try:
            kernels = gpu.kernel_times(ours, launches, compiled.operators, target.gpu, precision)
        except Exception as error:  # the profiler needs rights that not every machine gives
            kernels, failed["kernel times"] = [], told(error)
    others = [timing.p50_us for name, timing in timings.items() if name != "ours"]
    return {
        "launches": len(launches),
        "back_to_back": {name: dataclasses.asdict(t) for name, t in timings.items()},
        "single": {name: dataclasses.asdict(t) for name, t in single.items()},
        "speed_up_over_best_pytorch": min(others) / timings["ours"].p50_us if others else None,
        "kernels": [dataclasses.asdict(kernel) for kernel in kernels],
        "not_measured": failed,
    }


def pytorch(
    model: str, shape: tuple[int, ...], precision: str
) -> tuple[dict[str, Callable[[], Any]], dict[str, str]]:
    """PyTorch eager in channels_last, that under a CUDA graph, torch.compile; why some are not."""
    import torch

    from tvm_mobilenet.frontend.load import load_module

    name, options = MODELS[model]
    module = load_module(name, **options).module
    kind = torch.float16 if precision == "float16" else torch.float32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.benchmark = True
    module = module.eval().to(DEVICE, kind, memory_format=torch.channels_last)
    x = torch.randn(shape, device=DEVICE, dtype=kind).to(memory_format=torch.channels_last)

    def eager() -> Any:
        with torch.inference_mode():
            return module(x)

    def graph() -> Callable[[], Any]:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # warm up as CUDA graphs ask for
            for _ in range(3):
                eager()
        torch.cuda.current_stream().wait_stream(side)
        recorded = torch.cuda.CUDAGraph()
        with torch.cuda.graph(recorded):
            eager()
        return recorded.replay

    def compiled() -> Callable[[], Any]:
        torch.compiler.reset()  # what was compiled for another shape or precision
        optimised = torch.compile(module, mode="max-autotune")

        def call() -> Any:
            with torch.inference_mode():
                return optimised(x)

        call()  # compiles, which may fail
        return call

    made: Mapping[str, Callable[[], Callable[[], Any]]] = {
        "eager": lambda: eager,
        "eager, CUDA graph": graph,
        "torch.compile": compiled,
    }
    calls, failed = {}, {}
    for way, make in made.items():
        try:
            calls[way] = make()
            calls[way]()
        except Exception as error:  # one way fewer, and the table says so
            calls.pop(way, None)
            failed[way] = told(error)
    return calls, failed


def tune(
    model: str, batch: int, precision: str, target: Any, trials: int, logs: Path
) -> dict[str, Any]:
    """Time random knobs of every operator alone; record those that beat the analytic choice.

    Records are kept only if the network with them is proven, and faster in turns with itself
    without them.
    """
    import numpy as np
    import tvm

    from tvm_mobilenet import targets
    from tvm_mobilenet.compiler_pass.schedule_operators import spec_of
    from tvm_mobilenet.errors import InputError
    from tvm_mobilenet.profiling import gpu
    from tvm_mobilenet.runtime.cuda import compiling
    from tvm_mobilenet.schedules.base import fingerprint, rules_for, scheduled
    from tvm_mobilenet.schedules.spec import to_json
    from tvm_mobilenet.tuning import records

    with network(model, batch, precision, target) as (_, (compiled, _), _):
        operators = {o.symbol: o for o in compiled.operators if spec_of(compiled.kernels[o.symbol])}
    choice, device, kept, gains = random.Random(0), tvm.cuda(0), [], {}
    setting = records.setting_of(target, target.cores, device_name())
    at = targets.at_precision(target, precision)

    def seconds(function: Any) -> np.ndarray:
        named = tvm.IRModule({"main": function.with_attr("global_symbol", "main")})
        with compiling(target.gpu.arch):
            library = tvm.compile(named, target=target.tvm_target())
        shapes = [([int(n) for n in p.ty.shape], str(p.ty.dtype)) for p in function.params]
        values = [tvm.runtime.tensor(np.ones(*shape), device) for shape in shapes]
        timer = library.mod.time_evaluator("main", device, number=RUNS, repeat=5)
        return np.array(timer(*values).results)

    for symbol, operator in operators.items():
        spec = spec_of(compiled.kernels[symbol])
        rule = next(r for r in rules_for(at) if r.name == operator.schedule)
        base = scheduled(rule, spec, rule.analytic(spec, at), "analytic").function
        space = list(rule.space(spec, at))
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
        if gains[symbol] > LEAST_GAIN:
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
    found = {"operators": len(operators), "records": 0, "gains": gains}
    if not kept:
        return found
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / target.name
        directory.mkdir()
        records.update_records(directory, kept)
        found["summary"] = prove(model, precision, target, batch, Path(folder))["summary"]
        with (
            network(model, batch, precision, target) as (imported, _, plain),
            network(model, batch, precision, target, logs=Path(folder)) as (_, _, tuned),
        ):
            x = np.ones(imported.inputs[0].shape, imported.inputs[0].dtype)
            timings = gpu.interleaved({"plain": plain.enqueuer(x), "tuned": tuned.enqueuer(x)})
    found["network_gain"] = timings["plain"].p50_us / timings["tuned"].p50_us
    if found["network_gain"] > 1:
        (logs / target.name).mkdir(parents=True, exist_ok=True)
        records.update_records(logs / target.name, kept)
        found["records"] = len(kept)
    return found


def device_name() -> str:
    """The GPU's own name."""
    import torch

    return str(torch.cuda.get_device_name(0))


def told(error: Exception) -> str:
    """What went wrong, in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:400]


def print_error(text: str) -> None:
    """Progress."""
    sys.stderr.write(f"  {text}\n")
