"""Records: the winners of tuning, where they lie, and which of them apply to a build.

``<logs>/<target>/records.jsonl`` holds one line for each operator and setting, sorted, and is
replaced as a whole. ``native`` is no place of its own: this machine's records lie under the level
of its instruction set (``x86-64-v4``, ``x86-64-v3``, ...), with the device they were measured on.

A record applies to a build when

* its directory is the target's or that of the target's level,
* its vector unit is the target's: architecture, lanes, registers, FMA units,
* both run on one thread or both on several,
* its kernel has not changed since (`schedules.base.fingerprint`; checked by the compiler).

Of several the best match is taken: measured rather than predicted (``static``), the same LLVM CPU,
then the nearest L2 cache, then the nearest number of threads, then the latest.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvm_mobilenet.errors import InputError
from tvm_mobilenet.schedules.base import Recorded
from tvm_mobilenet.schedules.spec import Spec, to_json
from tvm_mobilenet.tuning.store import (
    PLACEHOLDER_SECONDS,
    SCHEMA_VERSION,
    UNREADABLE,
    check_types,
    locked_directory,
    os_errors_named,
    write_atomically,
)

if TYPE_CHECKING:
    from tvm_mobilenet.targets import TargetSpec

RECORDS = "records.jsonl"
SKETCH = "sketch"  # in the place of a rule's name: found by MetaSchedule's own search
STATIC = "static"  # a space: knobs that were predicted to be the best, and never measured
SHIPPED = Path(__file__).parent.parent / "tuning_logs"
_LEVELS = {4: "x86-64-v2", 8: "x86-64-v3", 16: "x86-64-v4"}  # by float32 lanes


@dataclass(frozen=True)
class Setting:
    """What a time depends on beside the kernel. ``device`` is the CPU's name or an RPC key."""

    architecture: str
    lanes: int
    vector_registers: int
    fma_units: int
    mcpu: str
    l2_kib: int
    threads: int
    device: str
    tvm: str
    tvm_mobilenet: str

    @property
    def vector_unit(self) -> tuple[str, int, int, int]:
        """What must be equal for a record to apply."""
        return self.architecture, self.lanes, self.vector_registers, self.fma_units

    def fits(self, other: Setting) -> bool:
        """Whether what was measured in one setting applies in the other."""
        return self.vector_unit == other.vector_unit and (self.threads == 1) == (other.threads == 1)

    def distance(self, other: Setting) -> tuple[float, ...]:
        """How far apart two settings that fit are; least first."""
        return (
            self.mcpu != other.mcpu,
            abs(math.log2(self.l2_kib / other.l2_kib)),
            abs(math.log2(self.threads / other.threads)),
        )


@dataclass(frozen=True)
class InNetwork:
    """Seconds of an operator inside a network, all its calls together, before and after."""

    network: str
    calls: int
    baseline_seconds: float
    seconds: float


@dataclass(frozen=True)
class Record:
    """The winner of one operator in one setting.

    operator: the specification's JSON. seconds, baseline_seconds: of one cold run alone, of the
    winner and of the analytic choice. time: UTC. space: ``template``, ``sketch`` or ``static``;
    of the latter the seconds are predicted cycles at 1 GHz.
    """

    operator: str
    rule: str
    knobs: dict[str, Any]
    fingerprint: str
    setting: Setting
    seconds: float
    spread: tuple[float, float]
    baseline_seconds: float
    in_network: InNetwork | None
    time: str
    seed: int
    space: str

    @property
    def identity(self) -> tuple[object, ...]:
        """Of two records with the same identity only one is kept."""
        return identity_of(self.operator, self.setting, self.space)


def identity_of(operator: str, setting: Setting, space: str) -> tuple[object, ...]:
    """See `Record.identity`: what was predicted stands beside what was measured."""
    return operator, setting.vector_unit, setting.mcpu, setting.threads, space == STATIC


def setting_of(target: TargetSpec, threads: int, device: str) -> Setting:
    """The setting of a target."""
    return Setting(
        architecture=_architecture(target),
        lanes=target.lanes,
        vector_registers=target.vector_registers,
        fma_units=target.fma_units,
        mcpu=target.mcpu,
        l2_kib=target.l2_kib,
        threads=threads,
        device=device,
        tvm=version("apache-tvm"),
        tvm_mobilenet=version("tvm-mobilenet"),
    )


def directory_of(target: TargetSpec) -> str:
    """The name of the directory that a target's records are written to."""
    return (_level(target) or target.mcpu) if target.name == "native" else target.name


def directories_for(target: TargetSpec) -> list[str]:
    """The directories whose records may apply to a target."""
    return list(dict.fromkeys(filter(None, (directory_of(target), _level(target)))))


def read_records(path: Path) -> list[Record]:
    """The records of one file, none when it does not exist.

    Raises InputError naming the line for anything that is not a record: winners are few, written
    as a whole, and wrong ones must not go unnoticed.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from error
    records = []
    for number, line in enumerate(lines, 1):
        try:
            records.append(_parsed(line))
        except UNREADABLE as error:
            reason = " ".join(str(error).split())[:120]
            raise InputError(
                f"{path}: line {number} is not a record ({reason}); remove the line or the file"
            ) from error
    return records


def update_records(
    directory: Path, keep: Iterable[Record], drop: Iterable[tuple[object, ...]] = ()
) -> list[Record]:
    """Put records into a directory's file, in one step; returns all that it then holds.

    Of the same identity the new one stays; `drop` are identities to take out.
    """
    path = directory / RECORDS
    with os_errors_named(path), locked_directory(directory):
        records = {record.identity: record for record in read_records(path)}
        for identity in drop:
            records.pop(identity, None)
        records |= {record.identity: record for record in keep}
        ordered = sorted(records.values(), key=lambda r: (r.rule, repr(r.identity)))
        write_atomically(path, "".join(f"{_text(record)}\n" for record in ordered))
    return ordered


class Applicable:
    """The records that apply to builds for one target: what `schedules.base.Records` is."""

    def __init__(self, records: Sequence[Record], places: Sequence[Path], unfit: int) -> None:
        self.places = tuple(places)
        self.unfit = unfit  # records there for other hardware or numbers of threads
        self._best: dict[tuple[str, str], Record] = {}
        for record in records:
            self._best.setdefault((record.operator, record.rule), record)

    def __call__(self, spec: Spec, rule: str) -> Recorded | None:
        record = self.find(to_json(spec), rule)
        if record is None:
            return None
        return Recorded(record.knobs, record.fingerprint, record.space == STATIC)

    def trace(self, operator: str) -> Recorded | None:
        """For a function without a template (`schedule_rest.operator_of`)."""
        record = self.find(operator, SKETCH)
        return None if record is None else Recorded(record.knobs, record.fingerprint)

    def __len__(self) -> int:
        return len(self._best)

    def find(self, operator: str, rule: str) -> Record | None:
        """The record of an operator, given as its specification's JSON."""
        return self._best.get((operator, rule))


def applicable(target: TargetSpec, threads: int, logs: Path | None = None) -> Applicable:
    """What applies to a build for `target` that will run on `threads` threads.

    logs: a directory of records instead of those that come with the package. Raises InputError
    when it does not exist or holds a damaged file.
    """
    root = SHIPPED if logs is None else logs
    if not root.is_dir():
        raise InputError(f"{root}: no such directory of tuning records")
    places = [root / name for name in directories_for(target)]
    setting = setting_of(target, threads, "")
    everything = [record for place in places for record in read_records(place / RECORDS)]
    fitting = [record for record in everything if record.setting.fits(setting)]
    fitting.sort(key=lambda record: record.time, reverse=True)
    fitting.sort(key=lambda record: record.setting.distance(setting))
    fitting.sort(key=lambda record: record.space == STATIC)  # yields to whatever was measured
    return Applicable(fitting, places, len(everything) - len(fitting))


def _architecture(target: TargetSpec) -> str:
    return target.mtriple.split("-")[0]


def _level(target: TargetSpec) -> str | None:
    if target.gpu is not None or _architecture(target) != "x86_64":
        return None
    return _LEVELS.get(target.lanes)


def _text(record: Record) -> str:
    return json.dumps({"schema_version": SCHEMA_VERSION, **asdict(record)})


def _parsed(line: str) -> Record:
    data = json.loads(line)
    if data.pop("schema_version") != SCHEMA_VERSION:
        raise ValueError("another schema version")
    inside = data.pop("in_network")
    record = Record(
        **data
        | {
            "setting": Setting(**data["setting"]),
            "spread": tuple(data["spread"]),
            "in_network": None if inside is None else InNetwork(**inside),
        }
    )
    for part in (record, record.setting, *([record.in_network] if record.in_network else [])):
        check_types(part)
    if min(record.setting.l2_kib, record.setting.threads) < 1:
        raise ValueError("its setting has no cache or no threads")
    if not (0 < record.seconds < PLACEHOLDER_SECONDS and record.baseline_seconds > 0):
        raise ValueError(f"{record.seconds} s is not a time")
    return record
