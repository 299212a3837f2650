"""ONNX Runtime's own per-node profile beside ours, layer by layer."""

from __future__ import annotations

import json
import re
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvm_mobilenet.errors import InputError, MissingToolError
from tvm_mobilenet.profiling.layers import layer_kinds, layer_name
from tvm_mobilenet.profiling.operators import RUNS, Runner, stored_inputs

if TYPE_CHECKING:
    import numpy as np
    import onnx

ROUNDS = 10
WARM_UP_RUNS = 3  # before every block
SETTLE_SECONDS = 0.02  # after a block of ONNX Runtime: its idle threads spin for a while
_KERNEL = "_kernel_time"
_ADDED = re.compile(r"(_nchwc|_token_\d+|_fused|_transformed)+$")  # to names, by its optimiser


@dataclass(frozen=True)
class LayerPair:
    """One of our operators beside ONNX Runtime's nodes for the same ONNX nodes, in microseconds.

    `theirs_us` is None where ONNX Runtime has no node of its own for the layer, `ours_us` where
    only it has one (a change of layout).
    """

    name: str
    kind: str
    ours_us: float | None
    theirs_us: float | None
    their_nodes: tuple[str, ...]


@dataclass(frozen=True)
class PeerProfile:
    """Both networks by layer: medians, in order of execution; `*_whole_us` without instruments."""

    peer: str
    version: str
    threads: int
    layers: tuple[LayerPair, ...]
    ours_whole_us: float
    theirs_whole_us: float
    theirs_profiled_us: float  # sum of their nodes, by their own profiler

    def rows(self) -> list[dict[str, Any]]:
        """Flat rows, our slowest first; `ratio` above 1: ours is faster."""
        rows = [
            {
                "name": layer.name,
                "kind": layer.kind,
                "ours_us": layer.ours_us,
                "theirs_us": layer.theirs_us,
                "ratio": layer.theirs_us / layer.ours_us
                if layer.ours_us and layer.theirs_us is not None
                else None,
                "their_nodes": list(layer.their_nodes),
            }
            for layer in self.layers
        ]
        return sorted(rows, key=lambda row: -(row["ours_us"] or 0.0))


def beside_onnxruntime(
    bundle: str | Path,
    model: str | Path,
    *,
    threads: int | None = None,
    runs: int = RUNS,
    on_run: Callable[[int, int], None] | None = None,
) -> PeerProfile:
    """Profile a bundle and ONNX Runtime's session of `model`, which it was built from, in turns.

    ONNX Runtime's profiler counts whole microseconds. Raises MissingToolError without it,
    InputError for a model with other inputs than the bundle's.
    """
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise MissingToolError("onnxruntime is missing; run: pip install onnxruntime") from error
    from tvm_mobilenet import frontend
    from tvm_mobilenet.runtime import Bundle

    imported = frontend.load_model(model)
    loaded = Bundle.load(bundle, threads=threads)
    theirs, ours = ([(t.name, t.shape) for t in side.inputs] for side in (imported, loaded))
    if theirs != ours:
        raise InputError(
            f"{bundle} was not built from {model}: its inputs are {ours}, not {theirs}"
        )
    inputs = stored_inputs(loaded)
    runner = Runner(loaded, inputs)
    feeds = {info.name: x for info, x in zip(imported.inputs, inputs, strict=True)}
    with tempfile.TemporaryDirectory(prefix="tvm-mobilenet-") as folder:
        sessions = [
            _session(ort, imported.onnx, loaded.threads, Path(folder) if profiled else None)
            for profiled in (False, True)
        ]
        block = max(1, -(-runs // ROUNDS))
        plain, timed, whole = _rounds(runner, sessions, feeds, block, on_run)
        nodes = _nodes(Path(sessions[1].end_profiling()), block)
    return pair_up(
        loaded.manifest["operators"],
        timed,
        nodes,
        imported.onnx,
        version=ort.__version__,
        threads=loaded.threads,
        ours_whole=plain,
        theirs_whole=whole,
    )


def pair_up(
    operators: Sequence[Mapping[str, Any]],
    ours: np.ndarray,
    nodes: Mapping[str, np.ndarray],
    model: onnx.ModelProto,
    *,
    version: str,
    threads: int,
    ours_whole: np.ndarray,
    theirs_whole: np.ndarray,
) -> PeerProfile:
    """`ours`: nanoseconds (runs, operators); `nodes`: microseconds (runs,) by ORT's node name."""
    import numpy as np

    makers = {name: node.name for node in model.graph.node for name in node.output}
    owner = {node: i for i, operator in enumerate(operators) for node in operator["onnx_nodes"]}
    shared: dict[int, list[str]] = {}
    alone = []
    for name in nodes:
        place = owner.get(_onnx_node(name, makers))
        if place is None:
            alone.append(name)
        else:
            shared.setdefault(place, []).append(name)
    kinds = layer_kinds([str(operator["kind"]) for operator in operators])
    layers = []
    for i, (operator, kind) in enumerate(zip(operators, kinds, strict=True)):
        mine = tuple(shared.get(i, ()))
        layers.append(
            LayerPair(
                name=layer_name(operator["onnx_nodes"], operator["symbol"]),
                kind=kind,
                ours_us=float(np.median(ours[:, i])) / 1e3,
                theirs_us=float(np.median(sum(nodes[name] for name in mine))) if mine else None,
                their_nodes=mine,
            )
        )
    layers += [LayerPair(n, "other", None, float(np.median(nodes[n])), (n,)) for n in alone]
    return PeerProfile(
        peer="onnxruntime",
        version=version,
        threads=threads,
        layers=tuple(layers),
        ours_whole_us=float(np.median(ours_whole)) / 1e3,
        theirs_whole_us=float(np.median(theirs_whole)) / 1e3,
        theirs_profiled_us=float(np.median(sum(nodes.values()))),
    )


def _onnx_node(name: str, makers: Mapping[str, str]) -> str:
    """The ONNX node behind ORT's: it keeps the node's name, or takes that of the value it makes."""
    if name in makers:
        return makers[name]
    stripped = _ADDED.sub("", name)
    return makers.get(stripped, stripped)


def _session(ort: Any, model: onnx.ModelProto, threads: int, folder: Path | None) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    if folder is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(folder / "ort")
    content = model.SerializeToString()
    return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def _rounds(
    runner: Runner,
    sessions: Sequence[Any],
    feeds: Mapping[str, np.ndarray],
    block: int,
    on_run: Callable[[int, int], None] | None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Our plain times, our operators' times and ORT's unprofiled times, from blocks in turns."""
    import numpy as np

    runner.warm_up()
    plain, timed, whole = [], [], []
    clock = time.perf_counter_ns
    for done in range(ROUNDS):
        for _ in range(WARM_UP_RUNS):
            runner.timed()
        ours, rows = runner.alternate(block, lambda done, total: None)
        plain.append(ours)
        timed.append(np.diff(rows, axis=1)[:, 1:-1])
        for session in sessions:
            for run in range(WARM_UP_RUNS + block):
                start = clock()
                session.run(None, feeds)
                if session is sessions[0] and run >= WARM_UP_RUNS:
                    whole.append(clock() - start)
        time.sleep(SETTLE_SECONDS)
        if on_run:
            on_run(done + 1, ROUNDS)
    return np.concatenate(plain), np.concatenate(timed), np.array(whole)


def _nodes(path: Path, block: int) -> dict[str, np.ndarray]:
    """Microseconds of every node in every run after a block's warm-up, from ORT's trace."""
    import numpy as np

    times: dict[str, list[float]] = {}
    events = json.loads(path.read_text("utf-8"))
    for event in sorted(events, key=lambda event: event["ts"]):
        if event["cat"] == "Node" and event["name"].endswith(_KERNEL):
            times.setdefault(event["name"].removesuffix(_KERNEL), []).append(event["dur"])
    kept = {}
    for name, durations in times.items():
        rounds = np.array(durations, float).reshape(ROUNDS, WARM_UP_RUNS + block)
        kept[name] = rounds[:, WARM_UP_RUNS:].reshape(-1)
    return kept
