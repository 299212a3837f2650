"""Whole networks: one model compiled with different knobs, timed against each other.

A kernel alone, however cold its buffers, is not the network: what the operator before left in the
caches counts too. So the finalists of all operators are compiled into networks, one network for
each place of the ranking, and their operators are timed where they run, by the bundle's second
entry (`compiler_pass.timed_entry`). The networks take turns in one process, so that a change of
the clock frequency or a busy neighbour hits all alike.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tvm_mobilenet.schedules.base import Recorded, Records, fingerprint
from tvm_mobilenet.schedules.spec import Spec, to_json
from tvm_mobilenet.tuning.task import Candidate

if TYPE_CHECKING:
    from tvm_mobilenet.compiler_pass.schedule_rest import Traces
    from tvm_mobilenet.frontend import ImportedModel
    from tvm_mobilenet.targets import TargetSpec
    from tvm_mobilenet.tuning.device import Device

Choice = Mapping[str, Candidate]  # by operator; the analytic choice where there is none


@dataclass(frozen=True)
class Network:
    """A compiled network as a library, and the operator behind each of its calls, in order."""

    library: Path
    operators: tuple[str | None, ...]  # the specification's JSON; None: not ours
    compile_seconds: float


def compile_network(
    imported: ImportedModel,
    target: TargetSpec,
    choice: Choice,
    library: Path,
    *,
    traces: Traces | None = None,
) -> Network:
    """Compile with the given candidates, and traces for what has no template.

    Raises as `deploy.library.export_library`.
    """
    from tvm_mobilenet.compiler_pass.pipeline import compile_model
    from tvm_mobilenet.compiler_pass.schedule_operators import spec_of
    from tvm_mobilenet.deploy.library import export_library

    compiled = compile_model(imported, target, records=records_of(choice), traces=traces)
    export_library(compiled, library)
    specs = [spec_of(compiled.kernels[operator.symbol]) for operator in compiled.operators]
    texts = tuple(None if spec is None else to_json(spec) for spec in specs)
    return Network(library, texts, compiled.seconds)


def records_of(choice: Choice) -> Records:
    """What `compile_model` takes to compile a network with these candidates."""

    def records(spec: Spec, rule: str) -> Recorded | None:
        candidate = choice.get(to_json(spec))
        if candidate is None or candidate.rule.name != rule:
            return None
        kernel = candidate.rule.build(spec, candidate.knobs)
        return Recorded(dataclasses.asdict(candidate.knobs), fingerprint(kernel))

    return records


def time_operators(
    networks: Sequence[Network], imported: ImportedModel, device: Device
) -> dict[str, np.ndarray]:
    """Seconds of every operator inside each network, all its calls together.

    By operator an array (networks, rounds): the medians of the rounds' runs.
    """
    times = _race(networks, imported, device, timed=True)  # (networks, rounds, calls)
    found: dict[str, np.ndarray] = {}
    for place, operator in enumerate(networks[0].operators):
        if operator is not None:
            found[operator] = found.get(operator, 0.0) + times[:, :, place]
    return found


def time_networks(
    networks: Sequence[Network], imported: ImportedModel, device: Device
) -> np.ndarray:
    """Seconds of a run of each network, end to end: (networks, rounds), medians of the rounds."""
    return _race(networks, imported, device, timed=False)[:, :, 0]


def ratio(base: np.ndarray, other: np.ndarray, seed: int = 0) -> Any:
    """`profiling.statistics.speed_up` of rounds' medians: above 1, ``other`` is faster."""
    from tvm_mobilenet.profiling.statistics import speed_up

    return speed_up(base[:, None], other[:, None], seed)


def choose(times: np.ndarray) -> int:
    """Of the networks' times (networks, rounds) of one operator, the one to take; 0 is the base.

    Another than the base is taken only when it is faster outside noise: when the 95 % interval of
    the ratio of medians, over the same rounds, lies above 1.
    """
    medians = np.median(times, axis=1)
    for place in np.argsort(medians, kind="stable"):
        if place == 0:
            return 0
        if ratio(times[0], times[place]).low > 1.0:
            return int(place)
    return 0


def _race(
    networks: Sequence[Network], imported: ImportedModel, device: Device, *, timed: bool
) -> np.ndarray:
    from tvm_mobilenet.parity import samples

    [sample] = samples(imported, count=1)
    inputs = [np.asarray(sample[info.name]) for info in imported.inputs]
    return device.race([(str(n.library), len(n.operators)) for n in networks], inputs, timed)
