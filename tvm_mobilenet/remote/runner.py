"""MetaSchedule's candidates, measured on every device of a key at once.

    from tvm_mobilenet.remote.runner import runner

    with contextlib.closing(runner("127.0.0.1:9190", "rpi4", timeout_sec=10)) as devices:
        futures = devices.run([RunnerInput(artifact_path, "cpu", args_info), ...])
        results = [future.result() for future in futures]

Not TVM's RPCRunner: that gives up a candidate when its device drops out, does not say which device
it was, has no limit of its own on a device that does not answer, and needs functions on the device
that the runtime library lacks.

**Artifacts** are shared libraries for the device (`.so`, linked on this machine), whose function is
named `main`, as MetaSchedule's builders name it; link with `deploy.library`'s compiler and
`executable.export_library(path.so)`, not with the builders' default, a tar that the device would
have to link. They are uploaded under a name of their own and removed on the device afterwards;
here they are left alone.

**Arguments** are made from `args_info` alone, in its order: tensors of that shape and dtype filled
with noise, without zeros, denormals or other special values (by the device where its server has
`libtvm_runtime_extra`, else uploaded). So a packed weight is an argument of the packed shape; its
values are not a packing of anything. The last argument may be the output.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import logging
import queue
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tvm.ir.utils import derived_object
from tvm.s_tir.meta_schedule.runner import (
    EvaluatorConfig,
    PyRunner,
    PyRunnerFuture,
    RunnerInput,
    RunnerResult,
)

from tvm_mobilenet.errors import InputError
from tvm_mobilenet.remote.errors import LostDeviceError, OvertimeError, RemoteError
from tvm_mobilenet.remote.measure import Candidate, Timing, measure
from tvm_mobilenet.remote.process import Process
from tvm_mobilenet.remote.tracker import Address, Tracker, check_key

_GRACE_SECONDS = 15.0  # for a device to end a session by itself, and to say so
_logger = logging.getLogger(__name__)

Job = tuple[Candidate, "concurrent.futures.Future[RunnerResult]"]


def runner(
    tracker: str,
    key: str,
    *,
    timeout_sec: float = 30.0,
    wait_sec: float = 600.0,
    retries: int = 1,
    threads: int | None = None,
    evaluator_config: EvaluatorConfig | None = None,
    on_loss: Callable[[str], None] | None = None,
) -> Any:
    """A MetaSchedule `PyRunner` over the devices of `key` at `tracker` ("HOST:PORT").

    timeout_sec: for one candidate on one device, from connecting to the last repeat; the device
        ends it then, and 15 s later this side does.
    wait_sec: how long a candidate may wait for a device that others use.
    retries: how often a candidate goes to another device after its device was lost under it. One
        that crashes its session looks like a lost device: TVM's own server does not survive it,
        `tvm-mobilenet rpc server` does.
    threads: how many the device uses; None leaves it to its server.
    evaluator_config: as MetaSchedule's (default: 3 repeats of at least 50 ms).
    on_loss: told of each lost device in one line (default: a logged warning), from other threads.

    `run` returns at once; each future's result has either `run_secs`, one mean in seconds for each
    repeat, or `error_msg`, which names the device, never both. Devices that are added to the key
    later are used from the next `run` on. `close` ends its processes and fails what is not done.

    Raises InputError: no tracker there, no device of that key, a malformed address or key.
    """
    return Runner(
        Tracker(Address.parse(tracker)),
        check_key(key),
        timeout_sec,
        wait_sec,
        retries,
        threads,
        evaluator_config or EvaluatorConfig(number=1, repeat=3, min_repeat_ms=50),
        on_loss or _logger.warning,
    )


@derived_object
class Future(PyRunnerFuture):
    """One candidate's result, when it is there."""

    def __init__(self, future: concurrent.futures.Future[RunnerResult]) -> None:
        super().__init__()
        self._future = future

    def done(self) -> bool:
        return self._future.done()

    def result(self) -> RunnerResult:
        return self._future.result()


@derived_object
class Runner(PyRunner):
    """See `runner`. Each device has a lane: a thread that gives work to a process of its own."""

    def __init__(
        self,
        tracker: Tracker,
        key: str,
        timeout_sec: float,
        wait_sec: float,
        retries: int,
        threads: int | None,
        evaluator_config: EvaluatorConfig,
        on_loss: Callable[[str], None],
    ) -> None:
        super().__init__()
        self._tracker, self._key = tracker, key
        self._timeout_sec, self._wait_sec, self._retries = timeout_sec, wait_sec, retries
        self._threads, self._on_loss = threads, on_loss
        self._timing = Timing(
            evaluator_config.number,
            evaluator_config.repeat,
            evaluator_config.min_repeat_ms,
            evaluator_config.enable_cpu_cache_flush,
        )
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._lanes: list[Process] = []
        self._closed = threading.Event()
        self._add_lanes(len(tracker.of_key(key)))

    def run(self, runner_inputs: Sequence[RunnerInput]) -> list[Any]:
        """Queue the candidates; returns a future for each, in their order."""
        with contextlib.suppress(InputError):  # who is not reached now may be when it is asked for
            self._add_lanes(len(self._tracker.of_key(self._key)))
        futures = []
        for entry in runner_inputs:
            future: concurrent.futures.Future[RunnerResult] = concurrent.futures.Future()
            arguments = tuple(
                (tuple(map(int, info.shape)), str(info.dtype)) for info in entry.args_info
            )
            path = Path(str(entry.artifact_path))
            self._jobs.put((Candidate(path, str(entry.device_type), arguments), future))
            futures.append(Future(future))
        return futures

    def close(self) -> None:
        """End the processes; candidates that are not done yet fail."""
        self._closed.set()
        for process in self._lanes:
            self._jobs.put(None)
            process.kill()

    def _add_lanes(self, devices: int) -> None:
        while len(self._lanes) < devices:
            process = Process()
            self._lanes.append(process)
            # a daemon, so that an interrupted search ends at once; the process ends with it
            threading.Thread(target=self._work, args=(process,), daemon=True).start()

    def _work(self, process: Process) -> None:
        while (job := self._jobs.get()) is not None:
            candidate, future = job
            try:
                future.set_result(self._measured(process, candidate))
            except BaseException as error:  # a defect here must reach the caller, not hang it
                future.set_exception(error)
        process.close()

    def _measured(self, process: Process, candidate: Candidate) -> RunnerResult:
        losses: list[str] = []
        while len(losses) <= self._retries:
            if self._closed.is_set():
                return RunnerResult(None, "the runner was closed")
            where = f"a device of key '{self._key}'"
            try:
                process.start()  # before a device is asked for: it waits for us only seconds
                grant = self._tracker.request(self._key, wait_seconds=self._wait_sec)
                where = str(grant.address)
                seconds = process.call(
                    measure,
                    grant,
                    candidate,
                    self._timing,
                    self._timeout_sec,
                    self._threads,
                    timeout=self._timeout_sec + _GRACE_SECONDS,
                )
                return RunnerResult(list(seconds), None)
            except LostDeviceError as error:
                losses.append(str(error))
                self._on_loss(str(error))
            except OvertimeError as error:
                losses.append(f"{where}: {error}")
                self._on_loss(losses[-1])
            except (RemoteError, InputError) as error:
                return RunnerResult(None, "; then ".join([*losses, str(error)]))
        crash = "the candidate crashes there, or the devices dropped out"
        return RunnerResult(None, f"{'; then '.join(losses)}: {crash}")
