"""MetaSchedule's builder and runner with a memory: what was measured before is not measured again.

A search of MetaSchedule with the same seed and the same times proposes the same candidates. So an
interrupted one goes on by starting anew: the log answers, at once, for every candidate that it
holds, and only the others are built, measured, and written to the log before the next one.
"""

from __future__ import annotations

import dataclasses
import datetime
from typing import TYPE_CHECKING, Any

import numpy as np
from tvm import tirx
from tvm.ir.utils import derived_object
from tvm.s_tir import meta_schedule as ms

from tvm_mobilenet.schedules.base import fingerprint
from tvm_mobilenet.tuning.measure import first_line
from tvm_mobilenet.tuning.records import SKETCH
from tvm_mobilenet.tuning.store import PLACEHOLDER_SECONDS, Measured, MeasuredLog
from tvm_mobilenet.tuning.transfer import comparable

if TYPE_CHECKING:
    from tvm_mobilenet.tuning.session import Place

_KNOWN = "known:"  # in the place of a library's path: the kernel's fingerprint follows


class Memory:
    """The measurements of one function in one place, in memory and in the log."""

    def __init__(self, operator: str, place: Place, seed: int) -> None:
        self.operator, self.place, self.seed = operator, place, seed
        self.reused = 0  # candidates that were not measured again
        self.built: dict[str, str] = {}  # the fingerprint, by path
        self._log = MeasuredLog(place.directory)
        ours = comparable(dataclasses.asdict(place.setting))
        self.known: dict[str, Measured] = {
            entry.fingerprint: entry
            for entry in self._log.read()[0]
            if entry.operator == operator
            and entry.space == SKETCH
            and comparable(entry.setting) == ours
        }

    def store(self, identity: str, seconds: list[float], error: str | None) -> None:
        """Of one candidate; on the disk when this returns."""
        entry = Measured(
            operator=self.operator,
            rule=SKETCH,
            knobs={},  # a trace is long, and the fingerprint tells kernels apart
            fingerprint=identity,
            setting=dataclasses.asdict(self.place.setting),
            seconds=float(np.median(seconds)) if seconds else None,
            spread=(min(seconds), float(np.median(seconds))) if seconds else None,
            error=error,
            time=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            seed=self.seed,
            space=SKETCH,
        )
        self._log.append([entry])
        self.known[identity] = entry


@derived_object
class ReplayBuilder(ms.builder.PyBuilder):
    """Builds what the memory does not know."""

    def __init__(self, builder: Any, memory: Memory) -> None:
        super().__init__()
        self.builder, self.memory = builder, memory

    def build(self, build_inputs: list[Any]) -> list[Any]:
        """MetaSchedule's interface: one BuilderResult for each BuilderInput."""
        memory = self.memory
        functions = [entry.mod["main"] for entry in build_inputs]
        identities = [fingerprint(tirx.PrimFunc(f.params, f.body)) for f in functions]
        fresh = [i for i, identity in enumerate(identities) if identity not in memory.known]
        results: list[Any] = [None] * len(identities)
        for i, built in zip(
            fresh, self.builder.build([build_inputs[i] for i in fresh]), strict=True
        ):
            results[i] = built
            if built.artifact_path is None:
                memory.store(identities[i], [], first_line(built.error_msg))
            else:
                memory.built[str(built.artifact_path)] = identities[i]
        for i, identity in enumerate(identities):
            if results[i] is None:
                memory.reused += 1
                error = memory.known[identity].error
                path = None if error else f"{_KNOWN}{identity}"
                results[i] = ms.builder.BuilderResult(path, error)
        return results


@derived_object
class ReplayRunner(ms.runner.PyRunner):
    """Runs what the memory does not know."""

    def __init__(self, runner: Any, memory: Memory) -> None:
        super().__init__()
        self.runner, self.memory = runner, memory

    def run(self, runner_inputs: list[Any]) -> list[Any]:
        """MetaSchedule's interface: one future for each RunnerInput, all of them done."""
        paths = [str(entry.artifact_path) for entry in runner_inputs]
        fresh = [i for i, path in enumerate(paths) if not path.startswith(_KNOWN)]
        results: dict[int, Any] = {}
        # LocalRunner returns when all are done, and those that it has must be on the disk before
        one_by_one = isinstance(self.runner, ms.runner.LocalRunner)
        for group in [[i] for i in fresh] if one_by_one else [fresh]:
            futures = self.runner.run([runner_inputs[i] for i in group])
            for i, future in zip(group, futures, strict=True):
                result = results[i] = future.result()
                seconds = [float(s) for s in result.run_secs or ()]
                error = first_line(result.error_msg) if result.error_msg else None
                if not error and not (seconds and 0 < min(seconds) < PLACEHOLDER_SECONDS):
                    error = f"the runner returned no times: {seconds[:3]}"
                self.memory.store(self.memory.built[paths[i]], [] if error else seconds, error)
        for i, path in enumerate(paths):
            if i not in results:
                known = self.memory.known[path.removeprefix(_KNOWN)].seconds
                results[i] = ms.runner.RunnerResult([known], None)
        return [_Done(results[i]) for i in range(len(paths))]


@derived_object
class _Done(ms.runner.PyRunnerFuture):
    """A result that is there."""

    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value

    def done(self) -> bool:
        return True

    def result(self) -> Any:
        return self.value
