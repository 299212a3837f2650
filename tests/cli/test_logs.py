"""`logs` on directories of records: list, show, merge, prune, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from tvm_mobilenet import targets
from tvm_mobilenet.cli import main
from tvm_mobilenet.errors import InputError
from tvm_mobilenet.schedules.base import fingerprint
from tvm_mobilenet.schedules.spec import ConvSpec, to_json
from tvm_mobilenet.tuning import maintain
from tvm_mobilenet.tuning.records import (
    RECORDS,
    InNetwork,
    Record,
    applicable,
    directories_for,
    directory_of,
    read_records,
    setting_of,
    update_records,
)
from tvm_mobilenet.tuning.store import Measured, MeasuredLog
from tvm_mobilenet.tuning.task import task_of

TARGET = dataclasses.replace(targets.load("x86-64-v3"), cores=1)
SPEC = ConvSpec(1, 16, 6, 6, 24, lanes=TARGET.lanes)
TASK = task_of(SPEC, TARGET)


def record(**changes: Any) -> Record:
    candidate = TASK.space[3]
    made = Record(
        operator=to_json(SPEC),
        rule=candidate.rule.name,
        knobs=dataclasses.asdict(candidate.knobs),
        fingerprint=fingerprint(candidate.rule.build(SPEC, candidate.knobs)),
        setting=setting_of(TARGET, 1, "a test"),
        seconds=1e-5,
        spread=(0.9e-5, 1e-5),
        baseline_seconds=1.2e-5,
        in_network=InNetwork("net", 1, 1.3e-5, 1e-5),
        time="2026-01-01T00:00:00+00:00",
        seed=0,
        space="template",
    )
    return dataclasses.replace(made, **changes)


def measured(seed: int) -> Measured:
    fields = {
        f.name: getattr(record(), f.name) for f in dataclasses.fields(Measured) if f.name != "error"
    }
    fields |= {"setting": dataclasses.asdict(record().setting), "seed": seed}
    return Measured(**fields, error=None)


def test_list_and_show(tmp_path: Path, capsys) -> None:
    update_records(tmp_path / "x86-64-v3", [record()])
    MeasuredLog(tmp_path / "x86-64-v3").append([measured(0)])
    assert main(["logs", "list", "--logs", str(tmp_path), "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["targets"]
    assert (found["target"], found["records"], found["measured"]) == ("x86-64-v3", 1, 1)
    assert main(["logs", "show", "x86-64-v3", "--logs", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "pointwise 1x16x6x6->24" in shown and "1.300" in shown
    native = directory_of(targets.load("native"))
    update_records(tmp_path / native, [record()])
    assert main(["logs", "show", "native", "--logs", str(tmp_path)]) == 0
    assert capsys.readouterr().out == shown


def test_merge_takes_what_gained_more_and_nothing_twice(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    other = to_json(dataclasses.replace(SPEC, out_channels=32))
    update_records(ours / "x86-64-v3", [record()])
    MeasuredLog(ours / "x86-64-v3").append([measured(0)])
    worse = record(in_network=InNetwork("net", 1, 1.1e-5, 1e-5), seed=1)
    update_records(theirs / "x86-64-v3", [worse, record(operator=other)])
    MeasuredLog(theirs / "x86-64-v3").append([measured(0), measured(1)])
    assert maintain.merge([theirs], ours) == {"x86-64-v3": (1, 1)}
    merged = read_records(ours / "x86-64-v3" / RECORDS)
    assert sorted(r.operator for r in merged) == sorted([record().operator, other])
    assert all(r.seed == 0 for r in merged)
    assert maintain.merge([theirs], ours) == {"x86-64-v3": (0, 0)}
    better = record(in_network=InNetwork("net", 1, 2e-5, 1e-5), seed=2)
    update_records(theirs / "x86-64-v3", [better])
    assert maintain.merge([theirs], ours) == {"x86-64-v3": (1, 0)}


def test_prune_removes_stale_records_and_damaged_lines(tmp_path: Path, capsys) -> None:
    place = tmp_path / "x86-64-v3"
    stale = record(operator=to_json(dataclasses.replace(SPEC, batch=2)))
    unknown = record(operator=to_json(dataclasses.replace(SPEC, batch=3)), knobs={"speed": 9})
    update_records(place, [record(), stale, unknown])
    log = MeasuredLog(place)
    log.append([measured(0)])
    log.path.write_bytes(log.path.read_bytes() + b"damaged\n")
    arguments = ["--logs", str(tmp_path), "--target", "x86-64-v3"]
    assert main(["logs", "prune", *arguments]) == 0
    assert "2 stale records and 1 damaged lines" in capsys.readouterr().out
    assert read_records(place / RECORDS) == [record()]
    assert log.read() == ([measured(0)], [])


def test_records_of_another_target_or_thread_count_do_not_apply(tmp_path: Path) -> None:
    update_records(tmp_path / "x86-64-v3", [record()])
    assert len(applicable(TARGET, 1, tmp_path)) == 1
    assert len(applicable(targets.load("haswell"), 1, tmp_path)) == 1  # of the same level
    several = applicable(TARGET, 4, tmp_path)
    assert (len(several), several.unfit) == (0, 1)
    for name in ("x86-64-v2", "x86-64-v4"):
        assert len(applicable(targets.load(name), 1, tmp_path)) == 0
    narrow = dataclasses.replace(TARGET, fma_units=1)
    assert len(applicable(narrow, 1, tmp_path)) == 0


def test_the_nearest_setting_wins(tmp_path: Path) -> None:
    def of(mcpu: str, threads: int, seed: int) -> Record:
        setting = dataclasses.replace(record().setting, mcpu=mcpu, threads=threads)
        return record(setting=setting, seed=seed)

    update_records(tmp_path / "x86-64-v3", [of("haswell", 4, 0), of("x86-64-v3", 8, 1)])
    update_records(tmp_path / "x86-64-v3", [of("x86-64-v3", 2, 2)])
    found = applicable(TARGET, 3, tmp_path).find(record().operator, record().rule)
    assert found is not None and found.seed == 2


def test_native_is_the_level_of_its_instructions() -> None:
    native = dataclasses.replace(TARGET, name="native", mcpu="haswell")
    assert (directory_of(native), directories_for(native)) == ("x86-64-v3", ["x86-64-v3"])
    haswell = targets.load("haswell")
    assert directories_for(haswell) == ["haswell", "x86-64-v3"]


def test_damaged_records_are_refused_by_line(tmp_path: Path) -> None:
    update_records(tmp_path / "x86-64-v3", [record()])
    path = tmp_path / "x86-64-v3" / RECORDS
    path.write_text(path.read_text() + '{"schema_version": 1}\n')
    with pytest.raises(InputError, match="line 2 is not a record"):
        applicable(TARGET, 1, tmp_path)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["show"], 2, "takes one TARGET"),
        (["merge"], 2, "takes the directories"),
        (["list", "x"], 2, "takes no names"),
        (["show", "x86-64-v3"], 3, "no records of 'x86-64-v3'; there is nothing yet"),
    ],
)
def test_refusals(arguments, code, message, tmp_path: Path, capsys) -> None:
    assert main(["logs", *arguments, "--logs", str(tmp_path)]) == code
    assert message in capsys.readouterr().err
    assert main(["logs", "list", "--logs", str(tmp_path / "none")]) == 3
