"""Profiling a bundle on another machine over TVM's RPC, with nothing of ours installed there.

The device runs the bundle's timed entry and its own clock fills the stamps. What happens around
the operators, and before the first timed run, is not seen from here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tvm_mobilenet.errors import InputError, NothingMeasuredError
from tvm_mobilenet.parity.samples import load_samples
from tvm_mobilenet.profiling.operators import RUNS, OperatorSamples, Samples
from tvm_mobilenet.profiling.profile import Profile, summarise
from tvm_mobilenet.runtime import manifest

if TYPE_CHECKING:
    from tvm_mobilenet.remote.network import NetworkRun
    from tvm_mobilenet.remote.tracker import Grant

GRACE_SECONDS = 15.0  # for the device to end the session by itself, and to say so
NOTES = (
    "over RPC only the operators are seen: the difference is what the instruments cost less what "
    "lies around the operators",
    "the device's limits are not known: no share of the roofline",
)


@dataclass(frozen=True)
class Device:
    """Where to profile: `tracker` ("HOST:PORT") and `key`, or a server's own address `rpc`."""

    rpc: str | None = None
    tracker: str | None = None
    key: str | None = None
    wait_seconds: float = 60.0
    timeout_seconds: float = 600.0

    def request(self) -> Grant:
        """Wait for it; InputError when there is no such device or none becomes free."""
        from tvm_mobilenet.remote.tracker import Address, Grant, Tracker, check_key

        if self.rpc is not None:
            return Grant(Address.parse(self.rpc), "" if not self.key else check_key(self.key))
        if self.tracker is None or self.key is None:
            raise InputError("say which device: a tracker and a key, or a server's address as rpc")
        tracker, key = Tracker(Address.parse(self.tracker)), check_key(self.key)
        tracker.of_key(key)
        return tracker.request(key, wait_seconds=self.wait_seconds)


def profile_remotely(
    bundle: str | Path,
    device: Device,
    *,
    threads: int | None = None,
    runs: int = RUNS,
    progress: Callable[[str], None] | None = None,
) -> Profile:
    """Profile a bundle on a device. **This runs the bundle's code there.**

    threads: None takes what the bundle was built with, else its target's cores. Raises InputError:
    no bundle, no such device; NothingMeasuredError: the device failed, vanished or took too long.
    """
    from tvm_mobilenet.remote.errors import RemoteError
    from tvm_mobilenet.remote.network import run_network
    from tvm_mobilenet.remote.process import Process

    directory = Path(bundle)
    contents = manifest.read(directory)
    manifest.check_files(directory, contents)
    names = [tensor.name for tensor in contents.inputs]
    outputs = [tensor.name for tensor in contents.outputs]
    sample = load_samples(directory / manifest.SAMPLES, names, outputs)[0]
    document = contents.document
    threads = threads or contents.threads or int(document["target"]["cores"])
    with Process() as process:
        try:
            process.start()  # before a device is asked for: it waits for us only seconds
            grant = device.request()
            if progress:
                progress(f"profiling {directory} on {grant.address}: {runs} runs")
            run: NetworkRun = process.call(
                run_network,
                grant,
                directory / manifest.LIBRARY,
                [[sample.inputs[name] for name in names]],
                threads=threads,
                runs=runs,
                operators=len(document["operators"]),
                seconds=device.timeout_seconds,
                timeout=device.timeout_seconds + GRACE_SECONDS,
            )
        except RemoteError as error:
            target = document["target"]
            raise NothingMeasuredError(
                f"{error}; the bundle was built for {target['name']} ({target['mtriple']})"
            ) from error
    samples = samples_of(run, document["operators"], threads)
    where = f"{device.key or 'device'} at {grant.address}"
    return summarise(samples, document, bundle=str(bundle), cpu=where, limits=None, notes=NOTES)


def samples_of(run: NetworkRun, operators: list[dict[str, object]], threads: int) -> Samples:
    """The raw times of a run on a device."""
    import numpy as np

    assert run.stamps is not None  # they were asked for
    steps = np.diff(run.stamps, axis=1)
    return Samples(
        operators=tuple(
            OperatorSamples(i, description, None, steps[:, i])
            for i, description in enumerate(operators)
        ),
        plain=np.array(run.seconds) * 1e9,
        timed=steps.sum(axis=1),
        entry=None,
        exit=None,
        first=None,
        warm_up=np.array([]),
        threads=threads,
        load_seconds=None,
    )
