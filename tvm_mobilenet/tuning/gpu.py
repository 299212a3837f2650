"""`tune` on a GPU: the session of `tune.tune` with another measurer and another last choice.

Store, resuming, search, ranking, sharing of trials among operators, records and report are those of
CPUs. What is a GPU's own: kernels are timed within CUDA graphs, beside the analytic choice
(`gpu_measure`, which says why), and the network as a whole decides (`gpu_finalists`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvm_mobilenet.errors import InputError
from tvm_mobilenet.profiling.gpu_network import device_name
from tvm_mobilenet.tuning.gpu_finalists import GpuFinalists
from tvm_mobilenet.tuning.gpu_measure import Beside, GpuMeasurer
from tvm_mobilenet.tuning.measure import Measurement
from tvm_mobilenet.tuning.records import setting_of
from tvm_mobilenet.tuning.session import BATCH, Place, Session, Trial
from tvm_mobilenet.tuning.tune import DEFAULT_SECONDS, make_directory, run

if TYPE_CHECKING:
    from tvm_mobilenet.frontend import ImportedModel
    from tvm_mobilenet.targets import TargetSpec
    from tvm_mobilenet.tuning.report import Outcome


class GpuSession(Session):
    """Measures each candidate in turns with its operator's analytic choice."""

    def _take_times(
        self, batch: Sequence[Trial], on_result: Callable[[int, Measurement], None]
    ) -> None:
        beside = []
        for trial in batch:
            task = trial.search.task
            analytic = task.baseline.rule.build(task.spec, task.baseline.knobs)
            beside.append(Beside(analytic, trial.search.baseline))
        measurer: Any = self._measurer
        measurer.measure([trial.kernel for trial in batch], on_result, beside)


def tune(
    imported: ImportedModel,
    target: TargetSpec,
    logs: Path,
    *,
    label: str | None = None,
    trials: int | None = None,
    seconds: float | None = None,
    seed: int = 0,
    info: Callable[[str], None] = lambda message: None,
    warn: Callable[[str], None] = lambda message: None,
    progress: Callable[[int, int, str], None] = lambda done, total, label: None,
) -> Outcome:
    """Find the fastest knobs for every operator of a network on this machine's GPU.

    label: the network's name in tables; None: the model's. trials: for each operator in the mean,
    those of earlier runs included. seconds: for the whole run, the last choice included. Neither:
    DEFAULT_SECONDS. Records go to ``logs``, once the network with them is proven.

    Raises InputError for a target that is not this GPU's, or when the GPU stops working;
    NothingMeasuredError when nothing could be measured; ParityError as `gpu_network.prove`.
    """
    if trials is None and seconds is None:
        seconds = DEFAULT_SECONDS
    place = Place(target, setting_of(target, target.cores, device_name()), logs)
    make_directory(place.directory)
    info("starting the builder")
    measurer: Any = local_measurer(target)
    with (
        closing(measurer),
        GpuFinalists(imported, target, measurer, info, warn) as finalists,
    ):
        session = GpuSession(
            imported,
            label or imported.name,
            place,
            measurer,
            seed=seed,
            batch=max(BATCH, 2 * measurer.workers),
            info=info,
            warn=warn,
            progress=progress,
        )
        in_all = None if trials is None else trials * len(session.tasks)
        return run(session, finalists, in_all, seconds, info)


def local_measurer(target: TargetSpec) -> GpuMeasurer:
    """Builds on every core of this machine, measures on its GPU.

    Raises InputError when that is another one than the target's, of which its times say nothing.
    """
    from tvm_mobilenet.runtime.cuda import compute_capability
    from tvm_mobilenet.targets.native import count_cores

    assert target.gpu is not None
    here = compute_capability()
    if here != target.gpu.capability:
        raise InputError(
            f"{target.name}: cannot be measured here: it is sm_{target.gpu.capability}, this GPU "
            f"is sm_{here}"
        )
    return GpuMeasurer(target, count_cores())
