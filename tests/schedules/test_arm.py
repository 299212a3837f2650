"""ARM's rules compute what their specs say: cross-compiled and run under QEMU's user mode.

Each operator is called through TVM's packed interface by a small C program, without TVM's runtime.
"""

from __future__ import annotations

import dataclasses
import re
import struct
import subprocess
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import tvm
import tvm_ffi

from tvm_mobilenet import targets
from tvm_mobilenet.schedules import base
from tvm_mobilenet.schedules.arm import pointwise
from tvm_mobilenet.schedules.spec import (
    RELU,
    RELU6,
    Activation,
    ConvSpec,
    DenseSpec,
    ElementwiseSpec,
    LayoutSpec,
    PoolSpec,
    ScaleSpec,
    Spec,
)

DRIVER = Path(__file__).with_name("arm_operators.c")
TOLERANCE = 3e-6  # float32 rounding over at most a few hundred products
HARDSWISH, HARDSIGMOID = Activation("hardswish"), Activation("hardsigmoid")

# target: its C compiler, the Debian package of that, and QEMU
CORES = {
    "cortex-a72": ("aarch64-linux-gnu-gcc", "g++-aarch64-linux-gnu", "qemu-aarch64"),
    # in order: loads apart
    "cortex-a53": ("aarch64-linux-gnu-gcc", "g++-aarch64-linux-gnu", "qemu-aarch64"),
    # 32-bit: no assembly
    "cortex-a7": ("arm-linux-gnueabihf-gcc", "g++-arm-linux-gnueabihf", "qemu-arm"),
}
EMULATED = [
    pytest.param(
        name,
        marks=[
            pytest.mark.needs_tool(compiler, package),
            pytest.mark.needs_tool(qemu, "qemu-user"),
        ],
    )
    for name, (compiler, package, qemu) in CORES.items()
]


def _depthwise(size: int, kernel: int, stride: int, **more: object) -> ConvSpec:
    padding = (kernel // 2,) * 4
    shape = (1, 8, size, size + 1, 8, (kernel, kernel), (stride, stride), padding)
    return ConvSpec(*shape, groups=8, **more)  # type: ignore[arg-type]


def _stem(size: int, channels: int, stride: int, padding: tuple[int, int, int, int]) -> ConvSpec:
    shape = (1, 3, size, size + 2, channels, (3, 3), (stride, stride), padding)
    return ConvSpec(*shape, input_layout="nchw", activation=RELU)


SPECS: list[Spec] = [
    # pixels: whole tiles, a shorter last one, fewer than a tile; channels: ragged in and out
    *(
        ConvSpec(1, i, pixels, 1, o, activation=RELU6, residual=i == 40)
        for pixels in (1, 3, 25, 49)
        for i, o in ((8, 4), (12, 20), (40, 36), (33, 28), (3, 8), (70, 30))
    ),
    ConvSpec(2, 24, 9, 7, 40, activation=HARDSWISH),
    *(_depthwise(size, k, s) for size, k, s in product((3, 8, 15, 29), (3, 5), (1, 2))),
    _depthwise(9, 3, 3, activation=HARDSWISH),
    _depthwise(9, 7, 1, activation=RELU6),
    # wider than the assembly's weights
    ConvSpec(1, 8, 3, 7, 8, (1, 9), (1, 1), (0, 4, 0, 4), groups=8),
    _depthwise(7, 1, 1, activation=RELU),
    ConvSpec(2, 21, 9, 9, 21, (3, 3), (1, 1), (2, 2, 2, 2), (2, 2), groups=21, residual=True),
    ConvSpec(1, 4, 3, 3, 4, (3, 3), (1, 1), (3, 3, 3, 3), groups=4),  # rows of padding alone
    *(
        _stem(size, channels, stride, padding)
        for size, channels, stride, padding in (
            (33, 24, 2, (0, 0, 1, 1)),
            (17, 10, 2, (1, 1, 1, 1)),
            (16, 16, 1, (0, 0, 0, 0)),
            (2, 8, 2, (1, 1, 1, 1)),
        )
    ),
    ConvSpec(1, 3, 23, 20, 12, (7, 7), (2, 2), (3, 3, 3, 3), input_layout="nchw"),
    ConvSpec(2, 2, 9, 30, 8, (2, 5), (1, 3), (0, 4, 1, 3), (1, 2), input_layout="nchw"),
    ConvSpec(1, 1, 5, 9, 20, input_layout="nchw"),  # a kernel row is one column
    # a tile at the edge would take more registers than one inside
    ConvSpec(1, 3, 20, 20, 12, (4, 4), (4, 4), (1, 1, 1, 1), input_layout="nchw"),
    ConvSpec(1, 19, 7, 6, 33, (5, 3), (1, 2), (2, 1, 2, 0), (2, 1)),
    DenseSpec(1, 130, 70, activation=HARDSIGMOID),
    DenseSpec(3, 64, 33, activation=RELU),
    PoolSpec(2, 41, 7, 7),
    ScaleSpec(2, 41, 5, 3, activation=RELU),
    ElementwiseSpec((2, 777), "add", activation=RELU6),
    ElementwiseSpec((1, 2100), activation=HARDSWISH),
    LayoutSpec(2, 21, 5, 3, "pack"),
    LayoutSpec(2, 21, 5, 3, "unpack"),
]


@pytest.fixture
def errors(tmp_path, case):
    """Each spec's largest error relative to the largest expected value, compiled for a core."""

    def run(specs: Sequence[Spec], core: str) -> dict[str, float]:
        target = dataclasses.replace(targets.load(core), cores=1)  # the program has no threads
        functions, arguments, expected = {}, [], []
        for i, spec in enumerate(specs):
            scheduled = base.schedule(dataclasses.replace(spec, lanes=target.lanes), target)
            example = case(dataclasses.replace(spec, lanes=target.lanes))
            inputs = list(example.inputs)
            if scheduled.pack_weight is not None:
                inputs[1] = scheduled.pack_weight(inputs[1])
            functions[f"operator_{i}"] = scheduled.function
            # an element that stays NaN was not written
            arguments.append([*inputs, np.full(example.expected.shape, np.nan, "float32")])
            expected.append(example.expected)
        program = _link(functions, target, CORES[core][0], tmp_path)
        outputs = _run(program, arguments, [CORES[core][2], "-cpu", target.qemu_cpu])
        return {
            str(spec): float(np.abs(got - want).max() / np.abs(want).max())
            for spec, got, want in zip(specs, outputs, expected, strict=True)
        }

    return run


def _link(functions: dict, target: targets.TargetSpec, compiler: str, folder: Path) -> Path:
    named = {name: f.with_attr("global_symbol", name) for name, f in functions.items()}
    compiled = tvm.compile(tvm.IRModule(named), target=target.tvm_target())
    compiled.mod.write_to_file(str(folder / "operators.o"), "o")
    symbols = [f"__tvm_ffi_{name}" for name in functions]
    declarations = "".join(f"int {s}(void *, const void *, int, void *);\n" for s in symbols)
    table = f"void *operators[] = {{{', '.join(symbols)}}};\nint n_operators = {len(symbols)};\n"
    (folder / "table.c").write_text(declarations + table)
    command = [compiler, "-O1", "-static", "-w", "-o", folder / "program"]
    command += [
        f"-I{tvm_ffi.libinfo.find_include_path()}",
        f"-I{tvm_ffi.libinfo.find_dlpack_include_path()}",
    ]
    command += [DRIVER, folder / "table.c", folder / "operators.o"]
    subprocess.run(list(map(str, command)), check=True)
    return folder / "program"


def _run(program: Path, arguments: list[list[np.ndarray]], emulator: list[str]) -> list[np.ndarray]:
    """The last array of each call's arguments, as the program leaves it."""
    inputs, outputs = program.with_name("inputs"), program.with_name("outputs")
    with inputs.open("wb") as file:
        for arrays in arguments:
            file.write(struct.pack("<q", len(arrays)))
            for array in arrays:
                file.write(struct.pack(f"<{1 + array.ndim}q", array.ndim, *array.shape))
                file.write(np.ascontiguousarray(array, "float32").tobytes())
    subprocess.run([*emulator, program, inputs, outputs], check=True)
    flat, results = np.fromfile(outputs, "float32"), []
    for arrays in arguments:
        piece, flat = np.split(flat, [arrays[-1].size])
        results.append(piece.reshape(arrays[-1].shape))
    return results


@pytest.mark.parametrize("core", EMULATED)
def test_rules_compute_their_specs(core, errors):
    wrong = {spec: e for spec, e in errors(SPECS, core).items() if not e < TOLERANCE}
    assert not wrong


@pytest.mark.slow
@pytest.mark.parametrize("core", EMULATED[:2])
def test_every_shape_of_the_networks(core, errors):
    from tvm_mobilenet.compiler_pass.lower_operators import lower_operators
    from tvm_mobilenet.compiler_pass.schedule_operators import spec_of
    from tvm_mobilenet.frontend import load_model

    specs: dict[Spec, None] = {}
    for model, options in (
        ("mobilenet_v1", {}),
        ("mobilenet_v1", {"alpha": 0.75, "resolution": 192}),
        ("mobilenet_v1", {"alpha": 0.5, "resolution": 160}),
        ("mobilenet_v1", {"alpha": 0.25, "resolution": 128}),
        ("mobilenet_v2", {}),
        ("mobilenet_v3_large", {}),
        ("mobilenet_v3_small", {}),
    ):
        lowered, sites = lower_operators(load_model(model, **options).mod, lanes=4)
        specs.update(dict.fromkeys(spec_of(lowered[name]) for name, _ in sites))
    wrong = {spec: e for spec, e in errors(list(specs), core).items() if not e < 2 * TOLERANCE}
    assert not wrong


@pytest.mark.parametrize("core", list(CORES))
def test_every_point_of_the_search_spaces_builds(core):
    target = targets.load(core)
    for spec in (
        ConvSpec(1, 16, 7, 7, 24),
        _depthwise(14, 3, 1),
        _depthwise(14, 5, 2),
        _stem(16, 16, 2, (0, 0, 1, 1)),
        DenseSpec(1, 32, 40),
        ScaleSpec(1, 16, 4, 4),
    ):
        spec = dataclasses.replace(spec, lanes=4)
        rule = next(rule for rule in base.rules_for(target) if rule.takes(spec, target))
        space = list(rule.space(spec, target))
        assert len(set(space)) == len(space) > 1
        for knobs in [*space[:: max(1, len(space) // 8)], space[-1]]:
            rule.build(spec, knobs)


@pytest.mark.parametrize("shape", [(5, 3), (7, 3), (8, 2), (1, 12)], ids=str)
@pytest.mark.parametrize("early", [False, True])
def test_pointwise_tiles_multiply_every_input_by_every_weight_once(early, shape):
    """The instructions, interpreted: loads fill registers in order, FMLA adds lane products."""
    pixels, vectors = shape
    tile = pointwise.PointwiseTile(*shape, blocks=7, block_bytes=1024, unroll=2, early=early)
    text = tile.assembly()
    assert text.sums + len(text.fixed) <= 32
    registers: dict[str, tuple[str, int]] = {}
    position = {"x": 0, "w": 0}
    seen = []
    constants = dict(enumerate(text.constants))
    for line in _unrolled(text.lines):
        if match := re.fullmatch(r"fmla \{s(\d+)\}\.4s, (v\d+)\.4s, (v\d+)\.s\[(\d)\]", line):
            total, weight, value, lane = match.groups()
            assert registers[weight][0] == "w"
            assert registers[value][0] == "x"
            seen.append((int(total), registers[weight][1], registers[value][1] + 4 * int(lane)))
        else:
            pointer = re.search(r"\{(x|w)\}", line)[1]
            step = re.search(r"(#|\{c)(\d+)\}?$", line)
            move = (
                constants[int(step[2])] if step and step[1] == "{c" else int(step[2] if step else 0)
            )
            offset = re.search(r"\[\{.\}, #(\d+)\]$", line)
            at = position[pointer] + int(offset[1] if offset else 0)
            names = re.findall(r"[vq]\d+", line.split("[")[0])
            for i, name in enumerate(names):
                registers["v" + name[1:]] = (pointer, at + 16 * i)
            position[pointer] += move
    expected = [
        (p * vectors + v, 16 * (vectors * (4 * b + lane) + v), 1024 * b + 16 * p + 4 * lane)
        for b, p, v, lane in product(range(7), range(pixels), range(vectors), range(4))
    ]
    assert sorted(seen) == sorted(expected)


def _unrolled(lines: Sequence[str]) -> list[str]:
    """Instructions in the order of execution: the one counted loop run through."""
    lines = list(lines)
    if "1:" not in lines:
        return lines
    start, end = lines.index("1:"), lines.index("b.ne 1b")
    times = int(lines[start - 1].split("#")[1])
    return [*lines[: start - 1], *lines[start + 1 : end - 1] * times, *lines[end + 1 :]]
