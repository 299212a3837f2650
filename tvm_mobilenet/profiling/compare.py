"""Two profiles operator by operator, with what chance alone could have done.

Bundles are run in turns, round by round, so that what disturbs one disturbs the other. Profiles
kept as JSON were not, so between them the machine may have changed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvm_mobilenet.errors import InputError
from tvm_mobilenet.profiling.layers import layer_kinds, layer_name
from tvm_mobilenet.profiling.operators import RUNS, Runner, stored_inputs
from tvm_mobilenet.profiling.statistics import Ratio, speed_up

if TYPE_CHECKING:
    import numpy as np

ROUNDS = 20
LEVEL = 0.05  # of error, over all operators together
# Two loads of one and the same bundle differ by up to this: their memory lies elsewhere.
NOTHING = 0.02


@dataclass(frozen=True)
class Timed:
    """What `compare` needs of one side: times in nanoseconds as (rounds, runs a round)."""

    name: str
    operators: Sequence[Mapping[str, Any]]  # name, kind, key
    nanoseconds: Sequence[np.ndarray]
    whole: np.ndarray  # without instruments


@dataclass(frozen=True)
class Difference:
    """One operator in A and in B, in microseconds (medians).

    `ratio` is A over B with its 95 % bootstrap interval over rounds: above 1, B is faster. `p` is
    the two-sided Mann-Whitney U test's on the medians of the rounds, adjusted for the number of
    operators (Holm 1979).
    """

    name: str
    kind: str
    a_us: float
    b_us: float
    ratio: Ratio
    p: float

    @property
    def difference_us(self) -> float:
        """B minus A: below 0, B is faster."""
        return self.b_us - self.a_us

    @property
    def verdict(self) -> str:
        """Whether B is "faster" or "slower" beyond chance and `NOTHING`, else "same"."""
        if self.p >= LEVEL or abs(self.ratio.value - 1) <= NOTHING:
            return "same"
        return "faster" if self.b_us < self.a_us else "slower"


@dataclass(frozen=True)
class Comparison:
    """A and B side by side, the largest differences first; `whole` is from end to end."""

    a: str
    b: str
    whole: Difference
    operators: tuple[Difference, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    notes: tuple[str, ...]

    def rows(self) -> list[dict[str, Any]]:
        """Flat rows, the largest difference first."""
        return [
            {
                "name": d.name,
                "kind": d.kind,
                "a_us": d.a_us,
                "b_us": d.b_us,
                "difference_us": d.difference_us,
                "ratio": d.ratio.value,
                "ratio_low": d.ratio.low,
                "ratio_high": d.ratio.high,
                "p": d.p,
                "verdict": d.verdict,
            }
            for d in self.operators
        ]


def compare(
    a: str | Path,
    b: str | Path,
    *,
    threads: int | None = None,
    runs: int = RUNS,
    on_run: Callable[[int, int], None] | None = None,
) -> Comparison:
    """Compare two bundles, run here in turns, or two JSON files of `profile --json`.

    Operators belong together that stand for the same ONNX nodes. Raises InputError for anything
    else, a mixture, or bundles that run on different numbers of threads.
    """
    paths = [Path(a), Path(b)]
    if all(path.is_file() for path in paths):
        if threads is not None:
            raise InputError("profiles kept as JSON have their threads: leave --threads out")
        sides = [_kept(path) for path in paths]
        notes: tuple[str, ...] = (
            "the two were measured apart: the machine may have changed in between",
        )
    elif any(path.is_file() for path in paths):
        raise InputError(f"{a} and {b}: compare two bundles, or two JSON files of 'profile --json'")
    else:
        sides, notes = run_in_turns(paths, threads, runs, on_run), ()
    return compare_timed(sides[0], sides[1], notes)


def compare_timed(a: Timed, b: Timed, notes: Sequence[str] = ()) -> Comparison:
    """Compare two sides that were measured; nothing is run."""
    pairs, left_a, left_b = _pairs(a.operators, b.operators)
    sides = [(_sum(a, mine), _sum(b, theirs)) for mine, theirs in pairs]
    p_values = _holm([_p(*side) for side in sides])
    found = [
        _difference(_head(a.operators, mine, b.operators, theirs), *side, p)
        for (mine, theirs), side, p in zip(pairs, sides, p_values, strict=True)
    ]
    only_a, only_b = (
        [f"{side.operators[i]['name']} ({side.operators[i]['kind']})" for i in left]
        for side, left in ((a, left_a), (b, left_b))
    )
    whole = _difference({"name": "whole", "kind": ""}, a.whole, b.whole, _p(a.whole, b.whole))
    ranked = sorted(found, key=lambda d: -abs(d.difference_us))
    return Comparison(
        a.name, b.name, whole, tuple(ranked), tuple(only_a), tuple(only_b), tuple(notes)
    )


Pair = tuple[Sequence[int], Sequence[int]]  # places in A and in B that stand for the same


def _pairs(
    a: Sequence[Mapping[str, Any]], b: Sequence[Mapping[str, Any]]
) -> tuple[list[Pair], list[int], list[int]]:
    """Who belongs together, and who is left over in A and in B.

    First those of equal keys, in their order; then one operator and the several that stand for the
    same ONNX nodes together, as where one side runs two layers in one pass.
    """
    places: dict[Any, list[int]] = {}
    for j, operator in enumerate(b):
        places.setdefault(operator["key"], []).append(j)
    pairs: list[Pair] = []
    left_a = []
    for i, operator in enumerate(a):
        if matching := places.get(operator["key"]):
            pairs.append(([i], [matching.pop(0)]))
        else:
            left_a.append(i)
    left_b = sorted(j for rest in places.values() for j in rest)
    for i in list(left_a):
        if parts := _parts(a[i]["key"], b, left_b):
            pairs.append(([i], parts))
            left_a.remove(i)
            left_b = [j for j in left_b if j not in parts]
    for j in list(left_b):
        if parts := _parts(b[j]["key"], a, left_a):
            pairs.append((parts, [j]))
            left_b.remove(j)
            left_a = [i for i in left_a if i not in parts]
    return pairs, left_a, left_b


def _sum(side: Timed, operators: Sequence[int]) -> np.ndarray:
    """Their time together, run by run."""
    import numpy as np

    total: np.ndarray = np.sum([side.nanoseconds[i] for i in operators], axis=0)
    return total


def _parts(
    whole: Sequence[Any], operators: Sequence[Mapping[str, Any]], left: Sequence[int]
) -> list[int]:
    """Those left over that together stand for exactly the nodes in `whole`; [] when they do not."""
    parts = [i for i in left if set(operators[i]["key"]) <= set(whole)]
    return parts if {node for i in parts for node in operators[i]["key"]} == set(whole) else []


def _head(
    a: Sequence[Mapping[str, Any]],
    mine: Sequence[int],
    b: Sequence[Mapping[str, Any]],
    theirs: Sequence[int],
) -> Mapping[str, Any]:
    """What names a pair: the one operator that stands for several of the other side, else A's."""
    return b[theirs[0]] if len(mine) > len(theirs) else a[mine[0]]


def run_in_turns(
    paths: Sequence[Path],
    threads: int | None,
    runs: int,
    on_run: Callable[[int, int], None] | None = None,
) -> list[Timed]:
    """Run two bundles in turns: in every round one block each, who begins takes turns.

    Raises InputError for bundles that cannot be used or run on different numbers of threads.
    """
    import numpy as np

    from tvm_mobilenet.runtime import Bundle

    bundles = [Bundle.load(path, threads=threads) for path in paths]
    a, b = (bundle.threads for bundle in bundles)
    if a != b:  # one pool serves both
        raise InputError(
            f"{paths[0]} runs on {a} and {paths[1]} on {b} threads: give both --threads N"
        )
    runners = [Runner(bundle, stored_inputs(bundle)) for bundle in bundles]
    for runner in runners:
        runner.warm_up()
    block = max(1, -(-runs // ROUNDS))
    plain: list[list[np.ndarray]] = [[], []]
    timed: list[list[np.ndarray]] = [[], []]
    for done in range(ROUNDS):
        for side in (0, 1) if done % 2 else (1, 0):
            runners[side].timed()  # brings its weights back into the caches
            whole, rows = runners[side].alternate(block, lambda done, total: None)
            plain[side].append(whole)
            timed[side].append(np.diff(rows, axis=1)[:, 1:-1])
        if on_run:
            on_run(done + 1, ROUNDS)
    return [
        _timed(str(path), bundle.manifest["operators"], np.array(rows), np.array(whole))
        for path, bundle, rows, whole in zip(paths, bundles, timed, plain, strict=True)
    ]


def _timed(
    name: str, operators: Sequence[Mapping[str, Any]], rows: np.ndarray, whole: np.ndarray
) -> Timed:
    """`rows`: (rounds, runs, operators); `whole`: (rounds, runs)."""
    kinds = layer_kinds([str(operator["kind"]) for operator in operators])
    described = [
        {"name": layer_name(o["onnx_nodes"], o["symbol"]), "kind": kind, "key": _key(o)}
        for o, kind in zip(operators, kinds, strict=True)
    ]
    return Timed(name, described, [rows[:, :, i] for i in range(len(described))], whole)


def _kept(path: Path) -> Timed:
    """A profile as `profile --json` printed it, its runs cut into rounds."""
    import numpy as np

    try:
        document = json.loads(path.read_bytes())
        layers = sorted(document["layers"], key=lambda layer: layer["index"])
        whole = np.array(document["nanoseconds"]["without_instruments"], float)
        times = [np.array(t, float) for t in document["nanoseconds"]["operators"]]
        described = [
            {"name": layer["name"], "kind": layer["kind"], "key": _key(layer)} for layer in layers
        ]
        if document["kind"] != "profile" or len(times) != len(described) or not len(whole):
            raise ValueError("not a profile")
        return Timed(str(path), described, [_rounds(t) for t in times], _rounds(whole))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path}: neither a bundle nor a JSON document of 'profile --json' ({error!r})"
        ) from error


def _rounds(times: np.ndarray) -> np.ndarray:
    rounds = min(ROUNDS, len(times))
    kept: np.ndarray = times[: len(times) // rounds * rounds].reshape(rounds, -1)
    return kept


def _key(operator: Mapping[str, Any]) -> Any:
    """What tells an operator across builds: its ONNX nodes, else what it does on what shape."""
    return tuple(operator["onnx_nodes"]) or (operator["kind"], operator["shape"])


def _difference(operator: Mapping[str, Any], a: np.ndarray, b: np.ndarray, p: float) -> Difference:
    import numpy as np

    rounds = min(len(a), len(b))
    return Difference(
        name=str(operator["name"]),
        kind=str(operator["kind"]),
        a_us=float(np.median(a)) / 1e3,
        b_us=float(np.median(b)) / 1e3,
        ratio=speed_up(a[:rounds], b[:rounds]),
        p=p,
    )


def _p(a: np.ndarray, b: np.ndarray) -> float:
    """Two-sided Mann-Whitney U on the rounds' medians: runs within a round are not independent."""
    import numpy as np
    from scipy.stats import mannwhitneyu

    return float(mannwhitneyu(np.median(a, axis=1), np.median(b, axis=1)).pvalue)


def _holm(p_values: Sequence[float]) -> list[float]:
    """P values adjusted for their number (Holm 1979)."""
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = highest
    return adjusted
