"""A bundle on another machine: uploaded, proven on its own samples, timed, and removed.

Of a bundle for several batch sizes each that has kernels of its own is proven and timed, on inputs
whose rows are the samples'.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvm_mobilenet.errors import InputError, NothingMeasuredError, UsageError
from tvm_mobilenet.parity.judge import SAMPLES, ParityReport, judge
from tvm_mobilenet.parity.samples import Sample, load_samples
from tvm_mobilenet.remote.errors import RemoteError
from tvm_mobilenet.remote.network import NetworkRun, run_network
from tvm_mobilenet.remote.process import Process
from tvm_mobilenet.remote.tracker import Address, Grant, Tracker, check_key
from tvm_mobilenet.runtime import manifest

if TYPE_CHECKING:
    import numpy as np

_GRACE_SECONDS = 15.0  # for the device to end the session by itself, and to say so


@dataclass(frozen=True)
class Timing:
    """Timed runs at one batch size. `seconds`: each run's; `passed`: parity at this size."""

    batch: int
    seconds: tuple[float, ...]
    passed: bool

    @property
    def median_seconds(self) -> float:
        """The median of the timed runs."""
        return statistics.median(self.seconds)

    @property
    def p95_seconds(self) -> float:
        """Ninety-five in a hundred timed runs took at most this long."""
        return sorted(self.seconds)[math.ceil(0.95 * len(self.seconds)) - 1]

    def to_json(self) -> dict[str, Any]:
        """The latency as JSON values."""
        return {
            "median": self.median_seconds,
            "min": min(self.seconds),
            "p95": self.p95_seconds,
            "max": max(self.seconds),
            "runs": len(self.seconds),
        }


@dataclass(frozen=True)
class Deployment:
    """A bundle's run on a device. `uploaded`: bytes; `timings`: by batch size, the first first."""

    bundle: Path
    target: str
    device: str
    key: str
    threads: int
    uploaded: int
    parity: ParityReport
    timings: tuple[Timing, ...]

    @property
    def seconds(self) -> tuple[float, ...]:
        """Each timed run at the first batch size."""
        return self.timings[0].seconds

    @property
    def median_seconds(self) -> float:
        """The median of the timed runs at the first batch size."""
        return self.timings[0].median_seconds

    @property
    def p95_seconds(self) -> float:
        """Ninety-five in a hundred timed runs at the first batch size took at most this long."""
        return self.timings[0].p95_seconds

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return {
            "bundle": str(self.bundle),
            "target": self.target,
            "device": self.device,
            "key": self.key,
            "threads": self.threads,
            "uploaded_bytes": self.uploaded,
            "parity": self.parity.to_json(),
            "latency_seconds": self.timings[0].to_json(),
            "batches": [
                {"batch": each.batch, "passed": each.passed, "latency_seconds": each.to_json()}
                for each in self.timings
            ],
        }


def deploy(
    bundle: str | Path,
    *,
    tracker: str | None = None,
    key: str | None = None,
    rpc: str | None = None,
    threads: int | None = None,
    runs: int | None = None,
    wait_sec: float = 60.0,
    timeout_sec: float = 600.0,
    progress: Callable[[str], None] | None = None,
) -> Deployment:
    """Run a bundle on a device over TVM's RPC; a failed parity is in the result, not raised.

    Every batch size with kernels of its own is proven and timed.

    tracker, key: "HOST:PORT" of a tracker and the device's key there; or
    rpc: "HOST:PORT" of a server without a tracker, with the `key` it was started with, if any.
    threads: None takes what the bundle was built with, else its target's cores.
    runs: timed runs at each batch size; None takes as many as fill three seconds, 5 to 1000.
    wait_sec: how long to wait for a free device. timeout_sec: for everything after that.

    The device needs a server of TVM's runtime, `python -m tvm.exec.rpc_server`, and nothing of
    ours. **This runs the bundle's code there.** Raises InputError: no bundle, a changed file, no
    tracker, no such device. NothingMeasuredError: the device failed, vanished or took too long.
    """
    say = progress or (lambda message: None)
    if (rpc is None) == (tracker is None) or (tracker is not None and key is None):
        raise UsageError("give either a tracker and a key, or the address of a server as rpc")
    for name, value in (("threads", threads), ("runs", runs)):
        if value is not None and value < 1:
            raise InputError(f"{name} must be at least 1, not {value}")
    directory = Path(bundle)
    contents = manifest.read(directory)
    manifest.check_files(directory, contents)
    samples = load_samples(
        directory / manifest.SAMPLES,
        [tensor.name for tensor in contents.inputs],
        [tensor.name for tensor in contents.outputs],
    )
    others = {
        entry: _at_batch(samples[number % len(samples)], batch)  # as the C++ runner does it
        for number, (batch, entry) in enumerate(contents.entries.items(), start=1)
    }
    target: Mapping[str, Any] = contents.document["target"]
    threads = threads or contents.threads or int(target["cores"])
    size = contents.files[manifest.LIBRARY].size
    with Process() as process:
        try:
            process.start()  # before a device is asked for: it waits for us only seconds
            grant = _granted(tracker, key, rpc, wait_sec)
            say(f"uploading {size / 1e6:.1f} MB to {grant.address} and running on it")
            run: NetworkRun = process.call(
                run_network,
                grant,
                directory / manifest.LIBRARY,
                [list(sample.inputs.values()) for sample in samples],
                others={entry: [list(one.inputs.values())] for entry, one in others.items()},
                threads=threads,
                runs=runs,
                operators=None,
                seconds=timeout_sec,
                timeout=timeout_sec + _GRACE_SECONDS,
            )
        except RemoteError as error:
            raise NothingMeasuredError(
                f"{error}; the bundle was built for {target['name']} ({target['mtriple']})"
            ) from error
    names = [tensor.name for tensor in contents.outputs]
    each = (run, *run.others)
    results = [dict(zip(names, made, strict=True)) for one in each for made in one.outputs]
    report = judge(results, [*samples, *others.values()])
    first = next(iter(samples[0].inputs.values())).shape[:1]
    kinds = {SAMPLES: first[0] if first else 1, **{_kind(n): n for n in contents.entries}}
    timings = tuple(
        Timing(batch, one.seconds, all(v.passed for v in report.outputs if v.inputs == kind))
        for (kind, batch), one in zip(kinds.items(), each, strict=True)
    )
    return Deployment(
        directory,
        target["name"],
        str(grant.address),
        key or "",
        threads,
        size,
        report,
        timings,
    )


def _kind(batch: int) -> str:
    return f"batch {batch}"


def _at_batch(sample: Sample, batch: int) -> Sample:
    """A sample of so many rows, which are the sample's rows over and over."""
    import numpy as np

    def rows(values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {name: np.resize(each, (batch, *each.shape[1:])) for name, each in values.items()}

    inputs, float32, float64 = map(rows, (sample.inputs, sample.float32, sample.float64))
    return Sample(inputs, float32, float64, kind=_kind(batch))


def _granted(tracker: str | None, key: str | None, rpc: str | None, wait_sec: float) -> Grant:
    """A device of the tracker's, or the one at a known address."""
    if rpc is not None:
        return Grant(Address.parse(rpc), "" if not key else check_key(key))
    assert tracker is not None and key is not None
    source = Tracker(Address.parse(tracker))
    source.of_key(check_key(key))
    return source.request(key, wait_seconds=wait_sec)
