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

from tvm_mobilenet.schedules.base import Records, activation_lanes
from tvm_mobilenet.targets import TargetSpec

from .fuse_separable import fuse_separable
from .lower_operators import lower_operators
from .onnx_nodes import name_the_rest
from .relax_graph import constant_of
from .results import Result, results
from .schedule_operators import schedule_operators
from .schedule_rest import Rest, Traces, lower_rest, schedule_rest
from .timed_entry import add_timed_entry
from .traced_entry import add_traced_entry

if TYPE_CHECKING:
    from tvm_mobilenet.frontend import ImportedModel

Progress = Callable[[str], None]


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
) -> Compiled:
    """Compile an imported model for ``target``.

    ``records`` gives tuned knobs, ``traces`` tuned schedules of what has no template; ``dump_ir``
    is a directory for the IR after each phase. ``cuda_graph``: a GPU gets the network's kernels
    as one CUDA graph, recorded at the first inference.
    """
    start = time.perf_counter()
    say = progress or (lambda text: None)
    dump = _Dump(dump_ir)
    tvm_target = target.tvm_target()
    with tvm_target, tvm.transform.PassContext(config=_pass_config(target, cuda_graph)):
        mod = imported.mod
        dump("imported", mod)

        say("lowering operators to blocked layout")
        # Phase 1. operator chains -> own functions on blocked activations
        mod, call_sites = lower_operators(mod, activation_lanes(target))
        dump("operators", mod)
        mod, call_sites = fuse_separable(mod, call_sites, target)
        dump("joined", mod)
        # Phase 2. TVM's own lowering for what is left
        mod = lower_rest(mod)
        dump("legalized", mod)
        say("scheduling")
        # Phase 3. schedules: own functions by rule, the rest by the fallback
        mod, scheduled = schedule_operators(mod, target, records)
        mod, rest = schedule_rest(mod, target, traces)
        dump("scheduled", mod)
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
        elif cuda_graph:
            mod = _plan_memory(before, relax.transform.RewriteCUDAGraph())
        mod = tvm.transform.Sequential(
            [
                relax.transform.VMShapeLower(),
                relax.transform.AttachGlobalSymbol(),
            ]
        )(mod)
        dump("planned", mod)
        say("generating code")
        # Phase 5. machine code
        executable = relax.build(mod, target=tvm_target, relax_pipeline=None, exec_mode="compiled")
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


def _pass_config(target: TargetSpec, cuda_graph: bool) -> dict[str, Any]:
    """Options of TVM's passes; none for CPUs."""
    if target.gpu is None:
        return {}
    return {
        "relax.backend.use_cuda_graph": cuda_graph,
        # loops stay loops under "#pragma unroll": a tenth of the source to read and to compile
        "tirx.UnrollLoop": {"explicit_unroll": False},
    }


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
