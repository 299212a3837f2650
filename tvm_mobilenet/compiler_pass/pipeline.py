"""The compiler's phases in order: imported Relax -> executable for one target."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tvm
from tvm import relax, tirx

from tvm_mobilenet.schedules.base import Records, Scheduled, activation_lanes
from tvm_mobilenet.targets import TargetSpec

from . import cuda_kernels
from .batch_sizes import add_entry, entry_name
from .counted_entry import add_counted_entry
from .join_operators import join_operators
from .lower_operators import CallSites, lower_operators
from .onnx_nodes import name_the_rest
from .operator_reports import OperatorReport, calls_in_order, onnx_nodes, report
from .results import results
from .schedule_operators import packing_of, schedule_operators, spec_of
from .schedule_rest import Rest, Traces, lower_rest, rest_of, schedule_rest
from .timed_entry import add_timed_entry
from .traced_entry import add_traced_entry

if TYPE_CHECKING:
    from tvm_mobilenet.frontend import ImportedModel

Progress = Callable[[str], None]
PHASES = ("imported", "operators", "joined", "scheduled")  # those that can be left out, in order


@dataclass(frozen=True)
class Experiment:
    """How `parity` takes the compiler apart, to find the phase in which a fault comes in.

    ``last_phase``: of `PHASES`, the last one applied; what would follow is left plain: own
    functions as scalar loops, TVM's lowering without schedules. ``change``: takes each phase's name
    and the module after it, returns the module to go on with; before ``scheduled`` it is asked for
    ``tuned``, where tuning records may apply. ``cautious_code``: see `cautious`. ``host``: a CPU
    that code is generated for in the place of a GPU, which plain functions have no threads for.
    """

    last_phase: str = "scheduled"
    change: Callable[[str, tvm.IRModule], tvm.IRModule] = lambda phase, mod: mod
    cautious_code: bool = False
    host: TargetSpec | None = None

    def applies(self, phase: str) -> bool:
        """Whether a phase is applied."""
        return PHASES.index(phase) <= PHASES.index(self.last_phase)


@dataclass(frozen=True)
class Entry:
    """The network for another batch size: a function of its own, ``name``, on the same weights."""

    name: str
    imported: ImportedModel
    operators: tuple[OperatorReport, ...]
    planned: relax.Function

    @property
    def batch(self) -> int:
        """The first axis of its inputs."""
        return self.imported.inputs[0].shape[0]


@dataclass(frozen=True)
class Compiled:
    """An executable with what it was made from. ``seconds`` is the time in the compiler.

    ``kernels``: every function that an operator calls, by its symbol, as it went to the compiler.
    ``planned``: the network after memory planning, calls of kernels on places in memory.
    ``entries``: the same for other batch sizes.
    """

    executable: Any
    imported: ImportedModel
    target: TargetSpec
    operators: tuple[OperatorReport, ...]
    kernels: Mapping[str, tirx.PrimFunc]
    planned: relax.Function
    seconds: float
    entries: tuple[Entry, ...] = ()


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
    others: Sequence[ImportedModel] = (),
) -> Compiled:
    """Compile an imported model for ``target``.

    ``others``: the model for other batch sizes, for CPUs: each becomes a function of its own, whose
    weights are packed as the first one's, so that they are stored once.
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
        own = _lower(imported, target, records, traces, None, experiment, after, say)
        mod = own.mod
        if target.gpu is None:
            mod = add_timed_entry(mod, target)
            mod = add_traced_entry(mod)
            mod = add_counted_entry(mod, target)
        elif cuda_graph and experiment.host is None:
            mod = _plan_memory(own.scheduled_mod, relax.transform.RewriteCUDAGraph())
        others_lowered = []
        for other in others:
            batch = other.inputs[0].shape[0]
            say(f"the same for batch {batch}")
            packing = packing_of(own.scheduled)
            lowered = _lower(other, target, records, traces, packing, experiment, after, say)
            mod, symbols = add_entry(mod, lowered.mod, batch)
            others_lowered.append((other, lowered, symbols, mod[entry_name(batch)]))
        mod = tvm.transform.Sequential(
            [
                relax.transform.VMShapeLower(),
                relax.transform.AttachGlobalSymbol(),
            ]
        )(mod)
        mod = after("planned", mod)
        say("generating code")
        # Phase 5. machine code
        built_for = experiment.host or target
        machine = cautious(built_for) if experiment.cautious_code else built_for.tvm_target()
        executable = relax.build(
            mod,
            target=machine,
            relax_pipeline=None,
            tir_pipeline="default" if built_for.gpu is None else cuda_kernels.PIPELINE,
            exec_mode="compiled",
        )
    operators = own.operators(imported)
    entries = tuple(
        Entry(entry_name(other.inputs[0].shape[0]), other, lowered.operators(other, symbols), entry)
        for other, lowered, symbols, entry in others_lowered
    )
    called = [o.symbol for network in (operators, *(e.operators for e in entries)) for o in network]
    kernels = {symbol: mod[symbol] for symbol in dict.fromkeys(called)}
    seconds = time.perf_counter() - start
    planned = own.mod["main"]
    return Compiled(executable, imported, built_for, operators, kernels, planned, seconds, entries)


@dataclass(frozen=True)
class _Lowered:
    """A network behind phase 4. ``scheduled_mod``: before memory planning, ``mod``: after it."""

    mod: tvm.IRModule
    scheduled_mod: tvm.IRModule
    call_sites: CallSites
    scheduled: dict[str, tuple[Any, Scheduled]]
    rest: dict[str, Rest]

    def operators(
        self, imported: ImportedModel, symbols: Mapping[str, str] | None = None
    ) -> tuple[OperatorReport, ...]:
        """In order of execution. ``symbols``: a kernel's name in the executable by that here."""
        specs = {name: spec for name, (spec, _) in self.scheduled.items()}
        computed = results(self.scheduled_mod, self.mod["main"], imported, self.call_sites, specs)
        nodes = onnx_nodes(imported, self.call_sites)
        reports = []
        for (name, size), result in zip(calls_in_order(self.scheduled_mod), computed, strict=True):
            made = report(name, size, self.mod, self.scheduled, self.rest, nodes)
            symbol = symbols[name] if symbols else name
            reports.append(dataclasses.replace(made, symbol=symbol, result=result))
        return name_the_rest(tuple(reports), imported.onnx)


def _lower(
    imported: ImportedModel,
    target: TargetSpec,
    records: Records | None,
    traces: Traces | None,
    packing: Mapping[Any, int] | None,
    experiment: Experiment,
    after: _After,
    say: Progress,
) -> _Lowered:
    """The phases up to memory planning. ``packing``: see `schedule_operators`."""
    mod = after("imported", imported.mod)
    call_sites: CallSites = []

    say("lowering operators to blocked layout")
    # Phase 1. operator chains -> own functions on blocked activations
    if experiment.applies("operators"):
        mod, call_sites = lower_operators(mod, activation_lanes(target), target.precision)
        mod = after("operators", mod)
    if experiment.applies("joined"):
        mod, call_sites = join_operators(mod, call_sites, target)
        mod = after("joined", mod)
    # Phase 2. TVM's own lowering for what is left
    mod = after("legalized", lower_rest(mod))
    say("scheduling")
    # Phase 3. schedules: own functions by rule, the rest by the fallback
    if experiment.applies("scheduled"):
        mod, scheduled = schedule_operators(mod, target, records, packing)
        mod, rest = schedule_rest(mod, target, traces)
        if records is not None:
            mod = experiment.change("tuned", mod)
        mod = after("scheduled", mod)
    else:
        scheduled, rest = _plain(mod)
    # Phase 4. memory planning and lowering to the virtual machine
    return _Lowered(_plan_memory(mod), mod, call_sites, scheduled, rest)


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
