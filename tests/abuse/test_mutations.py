"""Damaged and hostile files: refused with one line, or taken for what they are; never a traceback.

Each kind is mutated in its bytes and in its structure. A sample runs here; more, and others:

    ABUSE_CASES=10000 ABUSE_SEED=7 pytest -s tests/abuse/test_mutations.py

Of the models that are taken some are built, and so run, as well: one in thirty of ABUSE_CASES.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import math
import os
import random
import resource
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import AttributeProto, helper, numpy_helper

from tvm_mobilenet import frontend, targets
from tvm_mobilenet.deploy.bundle import check_output
from tvm_mobilenet.errors import InputError, TvmMobilenetError
from tvm_mobilenet.runtime import manifest
from tvm_mobilenet.schedules.spec import PoolSpec, to_json
from tvm_mobilenet.tuning.records import RECORDS, applicable
from tvm_mobilenet.tuning.store import MEASURED, MeasuredLog

CASES = int(os.environ.get("ABUSE_CASES", "0"))
BUILDS = CASES // 30 or 8
SEED = int(os.environ.get("ABUSE_SEED", "0"))
LIMIT = 30  # seconds of CPU time for one file
MEMORY = 4 << 30  # bytes beyond what the process has
INTEGERS = [0, 1, -1, 2, 3, 7, 255, 2**16, 2**31 - 1, 2**31, 2**62, -(2**63)]
VALUES = [*INTEGERS, None, True, "", "x", "a\x00b", "é" * 3, [], {}, [[]], 1.5, 1e999, math.nan]
TRICKS = ["../model.so", "/etc/passwd", "a/../../b", "..\\b", "C:b", "", ".", "a//b", "a\x00b"]
Mutate = Callable[[random.Random], bytes]


# ---------------------------------------------------------------- mutations


def damaged(data: bytes, dice: random.Random) -> bytes:
    """Bytes flipped, cut, doubled or replaced, in one to four places."""
    for _ in range(dice.randint(1, 4)):
        start = dice.randrange(len(data) + 1)
        end = min(len(data), start + dice.choice([1, 1, 2, 8, 100]))
        part = data[start:end]
        new = dice.choice(
            [
                b"",
                part + part,
                bytes(b ^ (1 << dice.randrange(8)) for b in part),
                b"\xff" * len(part),
                dice.randbytes(len(part)),
                data[: end - start],
            ]
        )
        data = data[:start] + new + data[end:]
        if dice.random() < 0.05:
            data = data[: dice.randrange(len(data) + 1)]
    return data


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) of a JSON document."""
    keys = (
        range(len(value)) if isinstance(value, list) else value if isinstance(value, dict) else ()
    )
    return [place for key in keys for place in [(value, key), *places(value[key])]]


def changed(document: Any, dice: random.Random) -> Any:
    """A copy of a JSON document with up to three values or keys replaced or taken out."""
    document = json.loads(json.dumps(document))
    for _ in range(dice.randint(1, 3)):
        container, key = dice.choice(places(document) or [([0], 0)])
        kind = dice.randrange(4)
        if kind == 0:
            del container[key]
        elif kind == 1 and isinstance(container, dict):
            container[dice.choice(TRICKS)] = container.pop(key)
        elif kind == 2 and isinstance(container[key], int | float):
            container[key] = dice.choice(INTEGERS)
        else:
            container[key] = dice.choice([*VALUES, *TRICKS])
    return document


def rewired(model: onnx.ModelProto, dice: random.Random) -> onnx.ModelProto:
    """A copy of a graph with one to three nodes, tensors or declarations changed."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    values = [*(name for node in graph.node for name in (*node.input, *node.output)), "", "nowhere"]

    def node() -> onnx.NodeProto:
        return dice.choice(graph.node)

    def attribute() -> None:
        attributes = node().attribute
        if not attributes:
            return
        one = dice.choice(attributes)
        one.i = dice.choice(INTEGERS)
        one.f = dice.choice([0.0, -1.0, math.inf, math.nan, 1e38])
        if one.ints:
            one.ints[dice.randrange(len(one.ints))] = dice.choice(INTEGERS)
        if dice.random() < 0.2:
            one.type = dice.choice([AttributeProto.INT, AttributeProto.STRING, AttributeProto.INTS])
        if dice.random() < 0.2:
            one.ints.extend([dice.choice(INTEGERS)] * dice.randint(1, 3))

    def tensor() -> None:
        one = dice.choice(graph.initializer)
        kind = dice.randrange(4)
        if kind == 0 and one.dims:
            one.dims[dice.randrange(len(one.dims))] = dice.choice(INTEGERS)
        elif kind == 1:
            one.raw_data = one.raw_data[: dice.randrange(len(one.raw_data) + 1)]
        elif kind == 2:
            one.data_type = dice.randrange(25)
        else:
            array = numpy_helper.to_array(one)
            new = dice.choice([array.reshape(-1), array[..., None], array * np.nan, np.empty(0)])
            one.CopyFrom(numpy_helper.from_array(new.astype(array.dtype), one.name))

    def declaration() -> None:
        dims = dice.choice([*graph.input, *graph.output]).type.tensor_type.shape.dim
        if dims:
            dims[dice.randrange(len(dims))].dim_value = dice.choice(INTEGERS)

    def operator() -> None:
        node().op_type = dice.choice([*{n.op_type for n in graph.node}, "Concat", "Loop", "Nope"])

    def wire() -> None:
        one = node()
        names = dice.choice([one.input, one.output])
        if names:
            names[dice.randrange(len(names))] = dice.choice(values)

    def count() -> None:
        index = dice.randrange(len(graph.node))
        if dice.random() < 0.5 and len(graph.node) > 1:
            del graph.node[index]
        else:
            graph.node.append(graph.node[index])

    def unknown() -> None:
        names = ["axis", "group", "pads", "strides", "kernel_shape", "auto_pad", "nope"]
        values = [dice.choice(INTEGERS), [dice.choice(INTEGERS)] * dice.randint(1, 5), "SAME_UPPER"]
        node().attribute.append(helper.make_attribute(dice.choice(names), dice.choice(values)))

    def version() -> None:
        copy.opset_import[0].version = dice.choice([*INTEGERS[:6], 12, 13, 18, 21, 99])
        copy.opset_import[0].domain = dice.choice(["", "", "ai.onnx", "elsewhere"])

    changes = [attribute, attribute, tensor, tensor, declaration, operator, wire, wire, count]
    for _ in range(dice.randint(1, 3)):
        with contextlib.suppress(ValueError, TypeError):  # damaged beyond what it can change
            dice.choice([*changes, unknown, version])()
    return copy


def swapped(text: str, dice: random.Random) -> str:
    """TOML with a value or a key replaced, or a line taken out or doubled."""
    lines = text.splitlines()
    index = dice.randrange(len(lines))
    key, equals, value = lines[index].partition(" = ")
    new = dice.choice(
        [*INTEGERS, "1.5", "true", '""', '"x"', '"a\\u0000b"', "[]", '["+nope"]', "{}", "[[", value]
    )
    lines[index : index + 1] = dice.choice(
        [[], [lines[index]] * 2, [f"{key}{equals}{new}"], [f"{key}x{equals}{value}"]]
    )
    return "\n".join(lines)


# ---------------------------------------------------------------- the files


def networks() -> list[onnx.ModelProto]:
    """Two networks of the family, as small as they get."""
    texts = [
        """<ir_version: 8, opset_import: ["" : 17]>
        plain (float[1,3,6,6] x) => (float[1,4] y) {
            a = Conv<strides=[2,2], pads=[1,1,1,1], kernel_shape=[3,3]>(x, w, b)
            c = BatchNormalization<epsilon=0.001>(a, b, b, b, v)
            d = Relu(c)
            e = Conv<group=4, auto_pad="SAME_UPPER", dilations=[1,1]>(d, k)
            f = Add(e, d)
            g = GlobalAveragePool(f)
            h = Flatten<axis=1>(g)
            y = Gemm<transB=1, alpha=1.0>(h, m, b)
        }""",
        """<ir_version: 8, opset_import: ["" : 17]>
        gated (float[N,4,5,5] x) => (float[N,4] y) {
            a = HardSwish(x)
            p = MaxPool<kernel_shape=[2,2], strides=[2,2], ceil_mode=1>(a)
            g = ReduceMean<axes=[2,3], keepdims=1>(p)
            s = HardSigmoid<alpha=0.2, beta=0.5>(g)
            q = Mul(p, s)
            r = Pad(q, o)
            c = Clip(r, l, u)
            t = ReduceMean<axes=[-1,-2], keepdims=0>(c)
            z = Shape(t)
            n = Reshape(t, z)
            y = Softmax<axis=1>(n)
        }""",
    ]
    random_ = np.random.default_rng(0)
    shapes = {"w": (4, 3, 3, 3), "b": (4,), "v": (4,), "k": (4, 1, 3, 3), "m": (4, 4)}
    tensors = {n: random_.uniform(0.5, 1, s).astype("float32") for n, s in shapes.items()}
    tensors |= {"l": np.float32(0), "u": np.float32(6), "o": np.array([0, 0, 1, 1, 0, 0, 1, 1])}
    models = [onnx.parser.parse_model(text) for text in texts]
    for model in models:
        used = {name for node in model.graph.node for name in node.input}
        model.graph.initializer.extend(
            numpy_helper.from_array(np.asarray(value), name)
            for name, value in tensors.items()
            if name in used
        )
        onnx.checker.check_model(model)
    return models


def take_model(path: Path) -> None:
    frontend.import_onnx(path)


def model_bytes(dice: random.Random) -> bytes:
    return damaged(dice.choice(networks()).SerializeToString(), dice)


def model_graph(dice: random.Random) -> bytes:
    return rewired(dice.choice(networks()), dice).SerializeToString()


def take_target(path: Path) -> None:
    targets.load(str(path)).tvm_target()


def target_text(dice: random.Random) -> bytes:
    names = ["x86-64-v3", "rpi4", "rpi2", "zen4"]
    text = (Path(targets.__file__).parent / f"{dice.choice(names)}.toml").read_text()
    return damaged(text.encode(), dice) if dice.random() < 0.4 else swapped(text, dice).encode()


def take_manifest(path: Path) -> None:
    """Reads, checks and would replace the bundle; files beside it are never looked at."""
    directory = path.parent
    try:
        check_output(directory)
    except TvmMobilenetError as error:
        assert "\n" not in str(error)
    contents = manifest.read(directory)
    for name in contents.files:
        assert (directory / name).resolve().is_relative_to(directory.resolve())
    manifest.check_files(directory, contents)


def manifest_text(dice: random.Random) -> bytes:
    tensor = {"name": "x", "shape": [1, 3, 8, 8], "dtype": "float32"}
    names = ("model.so", "samples.npz", "runner/main.cc")
    files = {name: {"sha256": "0" * 64, "size": 9} for name in names}
    document: dict[str, Any] = {
        "format": manifest.FORMAT,
        "schema_version": manifest.SCHEMA_VERSION,
        "inputs": [tensor],
        "outputs": [tensor],
        "threads": 1,
        "target": {"architecture": "x86_64", "cpu_features": ["avx2"]},
        "operators": [],
        "files": files,
    }
    mutated = changed(document, dice)
    if dice.random() < 0.1:
        return b"[" * 100_000
    text = json.dumps(mutated | {"manifest_sha256": "0" * 64}, indent=2) + "\n"
    digest = hashlib.sha256(text.encode()).hexdigest()  # a forger would seal it as well
    text = text.replace("0" * 64 + '"\n}\n', digest + '"\n}\n')
    return damaged(text.encode(), dice) if dice.random() < 0.3 else text.encode()


def take_measurements(path: Path) -> None:
    _, remarks = MeasuredLog(path.parent).read()
    if remarks:  # a damaged line is passed over, and said
        raise InputError(remarks[0])


def take_records(path: Path) -> None:
    found = applicable(targets.load("x86-64-v4"), 1, path.parent.parent)
    found(PoolSpec(1, 5, 3, 4), "pool")


def lines_of(entry: dict[str, Any], dice: random.Random) -> bytes:
    """One or two lines, of which all but the first are changed for sure."""
    if dice.random() < 0.02:
        return b"[" * 100_000 + b"\n"
    lines = [json.dumps(entry)] if dice.random() < 0.3 else []
    lines += [json.dumps(changed(entry, dice)) for _ in range(dice.randint(0, 2))]
    data = "".join(f"{line}\n" for line in lines).encode()
    return damaged(data, dice) if dice.random() < 0.3 else data


def record_text(dice: random.Random) -> bytes:
    inside = {"network": "n", "calls": 1, "baseline_seconds": 1e-3, "seconds": 1e-3}
    entry = {"baseline_seconds": 1e-3, "in_network": dice.choice([None, inside]), **candidate()}
    return lines_of(entry, dice)


def measurement_text(dice: random.Random) -> bytes:
    return lines_of({"error": None, **candidate()}, dice)


def candidate() -> dict[str, Any]:
    """What records and measurements have in common."""
    setting = {"architecture": "x86_64", "lanes": 16, "vector_registers": 32, "fma_units": 2}
    setting |= {"mcpu": "x86-64-v4", "l2_kib": 2048, "threads": 1, "device": "d"}
    setting |= {"tvm": "0", "tvm_mobilenet": "0"}
    entry: dict[str, Any] = {"schema_version": 1, "operator": to_json(PoolSpec(1, 5, 3, 4))}
    entry |= {"rule": "pool", "knobs": {"n": 1}, "fingerprint": "f", "setting": setting}
    entry |= {"seconds": 1e-3, "spread": [1e-3, 2e-3], "time": "2026-01-01"}
    return entry | {"seed": 0, "space": "template"}


KINDS: dict[str, tuple[str, Callable[[Path], None], Mutate, int]] = {
    # name: the file, what reads it, what mutates it, how many here
    "model's bytes": ("m.onnx", take_model, model_bytes, 150),
    "model's graph": ("m.onnx", take_model, model_graph, 150),
    "target": ("t.toml", take_target, target_text, 500),
    "manifest": (manifest.NAME, take_manifest, manifest_text, 500),
    "records": (f"x86-64-v4/{RECORDS}", take_records, record_text, 500),
    "measurements": (f"x86-64-v4/{MEASURED}", take_measurements, measurement_text, 500),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_file_is_taken_or_refused_with_one_line(kind: str, tmp_path: Path) -> None:
    name, take, mutate, count = KINDS[kind]
    path = tmp_path / "inside" / "deeper" / name
    path.parent.mkdir(parents=True)
    reader, writer = os.pipe()
    child = os.fork()  # so that a crash is seen, and its number
    if child == 0:
        code = 1
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # TVM's own remarks
            fuzz(path, take, mutate, CASES or count, writer)
            code = 0
        except BaseException as error:
            os.write(writer, f"- mutation {error!r}\n".encode())
        finally:
            os._exit(code)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        lines = pipe.read().splitlines()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    outcomes = Counter(line.split(" ", 2)[1] for line in lines)
    sys.stdout.write(f"\n{kind}: {len(lines)} files, {dict(outcomes)}\n")
    assert status == 0, f"file {len(lines)} ended the process: {status}"
    bad = [line for line in lines if line.split(" ", 2)[1] not in ("taken", "refused")]
    assert not bad, "\n".join(bad[:20])
    assert len(lines) == (CASES or count) and outcomes["refused"]
    written = {file for file in tmp_path.rglob("*") if file.is_file()}
    assert written <= {path}, "written elsewhere"


def fuzz(path: Path, take: Callable[[Path], None], mutate: Mutate, count: int, pipe: int) -> None:
    """Writes a line a file: its number, what happened, and the problem."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    for number in range(count):
        path.write_bytes(mutate(random.Random(f"{SEED} {number}")))
        signal.setitimer(signal.ITIMER_PROF, LIMIT)  # ends the process: a hang in C is seen
        try:
            take(path)
            said = "taken"
        except TvmMobilenetError as error:
            said = "refused" if "\n" not in str(error) else f"lines {error!r}"
        except BaseException as error:
            said = f"{type(error).__name__} {' '.join(str(error).split())[:300]}"
        signal.setitimer(signal.ITIMER_PROF, 0)
        os.write(pipe, f"{number} {said}\n".encode())


@pytest.mark.slow
def test_what_is_taken_compiles_and_runs_or_is_refused(
    commands: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    """The command proves each that it compiles against PyTorch; time and memory are limited."""
    path = tmp_path / "m.onnx"
    outcomes: Counter[str] = Counter()
    for number in itertools.count():
        dice = random.Random(f"{SEED} {number}")
        path.write_bytes(dice.choice([model_bytes, model_graph])(dice))
        place = tmp_path / "place"
        code, said = commands(["build", path, "--threads", 1, "-o", place / "bundle"], place)
        assert code in (0, 3, 5), f"ABUSE_SEED={SEED}, model {number}: {code}\n{said}"
        assert "Traceback" not in said and said.count("tvm-mobilenet: error: ") == (code != 0)
        outcomes[{0: "built", 3: "refused", 5: "refused by parity"}[code]] += 1
        assert {file.name for file in tmp_path.iterdir()} <= {"m.onnx", "place", "place.said"}
        shutil.rmtree(place)
        if outcomes["built"] + outcomes["refused by parity"] == BUILDS:
            break
    sys.stdout.write(f"\nmodels that are built: {dict(outcomes)}\n")
    assert outcomes["built"]
