"""The compiler's phases in order: imported Relax -> executable for one target."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tvm
from tvm import relax, tirx

from tvm_mobilenet.schedules.base import Records, Scheduled, activation_lanes
from tvm_mobilenet.targets import TargetSpec

from . import launch_bounds
from .counted_entry import add_counted_entry
from .fuse_separable import fuse_separable
from .lower_operators import CallSites, lower_operators
from .onnx_nodes import name_the_rest
from .relax_graph import constant_of
from .results import Result, results
from .schedule_operators import schedule_operators, spec_of
from .schedule_rest import Rest, Traces, lower_rest, rest_of, schedule_rest
from .timed_entry import add_timed_entry
from .traced_entry import add_traced_entry

if TYPE_CHECKING:
    from tvm_mobilenet.frontend import ImportedModel

Progress = Callable[[str], None]
PHASES = ("imported", "operators", "joined", "scheduled")  # those that can be left out, in order


@dataclass(frozen=True)
class OperatorReport:
    """One call in the compiled network, in order of execution.

    ``source`` says where its schedule came from: ``tuned``, ``analytic`` or ``fallback``;
    ``bytes`` are those of every tensor read or written once, ``weight_bytes`` those of its
    constants as they are stored; ``parallel``: it has a loop that is spread over the threads.
    """

    symbol: str
    kind: str
    shape: str
    onnx_nodes: tuple[str, ...]
    source: str
    schedule: str
    knobs: dict[str, Any]
    mult_adds: int
    bytes: int
    weight_bytes: int
    parallel: bool
    note: str = ""  # why a tuning record that there is was not applied
    result: Result | None = None  # which tensor of the model it computes


@dataclass(frozen=True)
class Experiment:
    """How `parity` takes the compiler apart, to find the phase in which a fault comes in.

    ``last_phase``: of `PHASES`, the last one applied; what would follow is left plain: own
    functions as scalar loops, TVM's lowering without schedules. ``change``: takes each phase's name
    and the module after it, returns the module to go on with; before ``scheduled`` it is asked for
    ``tuned``, where tuning records may apply. ``cautious_code``: see `cautious`.
    """

    last_phase: str = "scheduled"
    change: Callable[[str, tvm.IRModule], tvm.IRModule] = lambda phase, mod: mod
    cautious_code: bool = False

    def applies(self, phase: str) -> bool:
        """Whether a phase is applied."""
        return PHASES.index(phase) <= PHASES.index(self.last_phase)


@dataclass(frozen=True)
class Compiled:
    """An executable with what it was made from. ``seconds`` is the time in the compiler.

    ``kernels``: every function that an operator calls, by its symbol, as it went to the compiler.
    ``planned``: the network after memory planning, calls of kernels on places in memory.
    """

    executable: Any
    imported: ImportedModel
    target: TargetSpec
    operators: tuple[OperatorReport, ...]
    kernels: Mapping[str, tirx.PrimFunc]
    planned: relax.Function
    seconds: float


def compile_model(
    imported: ImportedModel,
    target: TargetSpec,
    *,
    records: Records | None = None,
    traces: Traces | None = None,
    dump_ir: Path | None = None,
    progress: Progress | None = None,
    cuda_graph: bool = True,
    experiment: Experiment | None = None,
) -> Compiled:
    """Compile an imported model for ``target``.

    ``records`` gives tuned knobs, ``traces`` tuned schedules of what has no template; ``dump_ir``
    is a directory for the IR after each phase. ``cuda_graph``: a GPU gets the network's kernels
    as one CUDA graph, recorded at the first inference. ``experiment``: see `Experiment`.
    """
    start = time.perf_counter()
    say = progress or (lambda text: None)
    experiment = experiment or Experiment()
    after = _After(_Dump(dump_ir), experiment)
    tvm_target = target.tvm_target()
    with tvm_target, tvm.transform.PassContext(config=pass_config(target, cuda_graph)):
        mod = after("imported", imported.mod)
        call_sites: CallSites = []

        say("lowering operators to blocked layout")
        # Phase 1. operator chains -> own functions on blocked activations
        if experiment.applies("operators"):
            mod, call_sites = lower_operators(mod, activation_lanes(target))
            mod = after("operators", mod)
        if experiment.applies("joined"):
            mod, call_sites = fuse_separable(mod, call_sites, target)
            mod = after("joined", mod)
        # Phase 2. TVM's own lowering for what is left
        mod = after("legalized", lower_rest(mod))
        say("scheduling")
        # Phase 3. schedules: own functions by rule, the rest by the fallback
        if experiment.applies("scheduled"):
            mod, scheduled = schedule_operators(mod, target, records)
            mod, rest = schedule_rest(mod, target, traces)
            if records is not None:
                mod = experiment.change("tuned", mod)
            mod = after("scheduled", mod)
        else:
            scheduled, rest = _plain(mod)
        # Phase 4. memory planning and lowering to the virtual machine
        before = mod
        order = _calls_in_order(mod)
        mod = _plan_memory(before)
        planned = mod["main"]
        computed = results(
            before, planned, imported, call_sites, {name: s for name, (s, _) in scheduled.items()}
        )
        if target.gpu is None:
            mod = add_timed_entry(mod, target)
            mod = add_traced_entry(mod)
            mod = add_counted_entry(mod, target)
        elif cuda_graph:
            mod = _plan_memory(before, relax.transform.RewriteCUDAGraph())
        mod = tvm.transform.Sequential(
            [
                relax.transform.VMShapeLower(),
                relax.transform.AttachGlobalSymbol(),
            ]
        )(mod)
        mod = after("planned", mod)
        say("generating code")
        # Phase 5. machine code
        machine = cautious(target) if experiment.cautious_code else tvm_target
        executable = relax.build(
            mod,
            target=machine,
            relax_pipeline=None,
            tir_pipeline="default" if target.gpu is None else launch_bounds.PIPELINE,
            exec_mode="compiled",
        )
    nodes = _onnx_nodes(imported, call_sites)
    kernels = {name: mod[name] for name, _ in order}
    operators = tuple(
        dataclasses.replace(_report(name, weight_bytes, mod, scheduled, rest, nodes), result=result)
        for (name, weight_bytes), result in zip(order, computed, strict=True)
    )
    operators = name_the_rest(operators, imported.onnx)
    seconds = time.perf_counter() - start
    return Compiled(executable, imported, target, operators, kernels, planned, seconds)


def _plan_memory(mod: tvm.IRModule, *then: tvm.transform.Pass) -> tvm.IRModule:
    """Calls that allocate their results -> calls on planned memory; ``then`` on the plan."""
    return tvm.transform.Sequential(
        [
            relax.transform.ToNonDataflow(),
            relax.transform.RemovePurityChecking(),
            relax.transform.CallTIRRewrite(),
            relax.transform.StaticPlanBlockMemory(),
            *then,
            relax.transform.LowerAllocTensor(),
            relax.transform.KillAfterLastUse(),
            relax.transform.LowerRuntimeBuiltin(),
            relax.transform.ComputePrimValue(),
        ]
    )(mod)


def pass_config(target: TargetSpec, cuda_graph: bool) -> dict[str, Any]:
    """Options of TVM's passes; none for CPUs."""
    if target.gpu is None:
        return {}
    return {
        "relax.backend.use_cuda_graph": cuda_graph,
        # loops stay loops under "#pragma unroll": a tenth of the source to read and to compile
        "tirx.UnrollLoop": {"explicit_unroll": False},
    }


def cautious(target: TargetSpec) -> tvm.target.Target:
    """The target's CPU without LLVM's optimisation; on x86 also without its vector extensions."""
    host = target.host_target().export()
    x86 = target.mtriple.startswith(("x86_64", "i686"))
    baseline = {"mcpu": "x86-64", "mattr": []} if x86 else {}
    return tvm.target.Target({**host, **baseline, "opt-level": 0})


def _plain(mod: tvm.IRModule) -> tuple[dict[str, Any], dict[str, Rest]]:
    """Own functions and the rest as they are, in the form of the scheduling functions' reports."""
    own = {
        var.name_hint: (spec, Scheduled(function, "plain", "plain", {}))
        for var, function in mod.functions.items()
        if (spec := spec_of(function)) is not None
    }
    return own, {name: Rest("plain") for name in rest_of(mod)}


class _After:
    """What is done after each phase: the experiment's change, then the dump."""

    def __init__(self, dump: _Dump, experiment: Experiment) -> None:
        self._dump, self._experiment = dump, experiment

    def __call__(self, phase: str, mod: tvm.IRModule) -> tvm.IRModule:
        mod = self._experiment.change(phase, mod)
        self._dump(phase, mod)
        return mod


class _Dump:
    """Writes the IR after each phase as TVMScript, numbered, if a directory was given."""

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory
        self._count = 0

    def __call__(self, phase: str, mod: tvm.IRModule) -> None:
        if self._directory is None:
            return
        self._directory.mkdir(parents=True, exist_ok=True)
        path = self._directory / f"{self._count}_{phase}.py"
        path.write_text(mod.script(show_meta=False), encoding="utf-8")
        self._count += 1


def _calls_in_order(mod: tvm.IRModule) -> list[tuple[str, int]]:
    """The functions that ``main`` calls, one entry a call: name and bytes of its constants."""
    calls: list[tuple[str, int]] = []
    for block in mod["main"].body.blocks:
        for binding in block.bindings:
            value = binding.value
            if isinstance(value, relax.Call) and getattr(value.op, "name", "") == "relax.call_tir":
                constants = [constant_of(argument) for argument in value.args[1].fields]
                weight_bytes = sum(c.nbytes for c in constants if c is not None)
                calls.append((value.args[0].name_hint, weight_bytes))
    return calls


def _has_parallel_loop(statement: Any) -> bool:
    """Whether a loop in it is spread over the threads (TVM's Python has no visitor for this)."""
    if isinstance(statement, tirx.For) and statement.kind == tirx.ForKind.PARALLEL:
        return True
    parts = [getattr(statement, name, None) for name in ("body", "block", "then_case", "else_case")]
    parts += getattr(statement, "seq", ())
    return any(_has_parallel_loop(part) for part in parts if part is not None)


def _onnx_nodes(
    imported: ImportedModel, call_sites: list[tuple[str, tuple[str, ...]]]
) -> dict[str, list[tuple[str, ...]]]:
    """Per own function, the ONNX nodes of each of its calls, in order."""
    nodes: dict[str, list[tuple[str, ...]]] = {}
    for name, bindings in call_sites:
        behind = [n for binding in bindings for n in imported.node_names.get(binding, ())]
        nodes.setdefault(name, []).append(tuple(dict.fromkeys(behind)))
    return nodes


def _report(
    name: str,
    weight_bytes: int,
    mod: tvm.IRModule,
    scheduled: dict[str, Any],
    rest: dict[str, Rest],
    nodes: dict[str, list[tuple[str, ...]]],
) -> OperatorReport:
    if name in scheduled:
        spec, result = scheduled[name]
        return OperatorReport(
            symbol=name,
            kind=spec.kind,
            shape=str(spec),
            onnx_nodes=nodes[name].pop(0),
            source=result.source,
            schedule=result.rule,
            knobs=result.knobs,
            mult_adds=spec.mult_adds,
            bytes=spec.min_bytes,
            weight_bytes=weight_bytes,
            parallel=_has_parallel_loop(mod[name].body),
            note=result.note,
        )
    assert name in rest, name
    params = mod[name].params
    shapes = [[int(e) for e in p.ty.shape] for p in params if hasattr(p.ty, "shape")]
    return OperatorReport(
        symbol=name,
        kind="other",
        shape=" ".join("x".join(map(str, shape)) or "1" for shape in shapes),
        onnx_nodes=(),
        source=rest[name].source,
        schedule="sketch" if rest[name].source == "tuned" else "fallback",
        knobs={},
        mult_adds=0,
        bytes=sum(4 * math.prod(shape) for shape in shapes),
        weight_bytes=weight_bytes,
        parallel=_has_parallel_loop(mod[name].body),
        note=rest[name].note,
    )
