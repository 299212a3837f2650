"""Matrix products on tensor cores: fragments, every number by exact emulation, resources by ptxas.

CI takes edge shapes and a sample of the networks' layers; all of them with ``ALL_CUDA_SHAPES=1``.
"""

from __future__ import annotations

import dataclasses
import os
import re
from itertools import pairwise

import numpy as np
import pytest

from tvm_mobilenet import frontend, targets
from tvm_mobilenet.compiler_pass.lower_operators import lower_operators
from tvm_mobilenet.compiler_pass.pipeline import compile_model
from tvm_mobilenet.compiler_pass.schedule_operators import spec_of
from tvm_mobilenet.parity import samples
from tvm_mobilenet.parity.cuda_emulate import Emulator, KernelError, run_function
from tvm_mobilenet.parity.cuda_launches import Buffer, HostCode, Launch, lower
from tvm_mobilenet.parity.cuda_network import prove
from tvm_mobilenet.parity.precision import at_precision as at_precision_of
from tvm_mobilenet.parity.reference import evaluate
from tvm_mobilenet.profiling.static import occupancy
from tvm_mobilenet.runtime import nvrtc
from tvm_mobilenet.runtime.ptxas import parse_log
from tvm_mobilenet.schedules import base
from tvm_mobilenet.schedules.cuda.gemm import MIN_BLOCKS, problem_of
from tvm_mobilenet.schedules.cuda.tensor_core_knobs import MOST_REGISTERS, SHARED_BYTES
from tvm_mobilenet.schedules.spec import (
    RELU,
    RELU6,
    Activation,
    ConvSpec,
    DenseSpec,
    ScaledSpec,
    ScaleSpec,
    SeparableSpec,
)

TARGET = targets.load("cuda-sm90")
PRECISIONS = ("tf32", "float16")
# of the largest value: float32 sums; with a depthwise part, too, whose result may lie so near the
# middle of two values of the precision that float32 rounds it to the other one
SUMS, PAIR = 1e-5, 3e-4
SAME, HALF = (1, 1, 1, 1), (0, 0, 1, 1)


def at_precision(spec, precision):
    """As the network's compiler has it: tf32 is a precision of matrix products alone."""
    if isinstance(spec, SeparableSpec):
        return SeparableSpec(
            at_precision(spec.depthwise, precision), at_precision(spec.pointwise, precision)
        )
    if isinstance(spec, ScaledSpec):
        return ScaledSpec(
            at_precision(spec.scale, precision), at_precision(spec.pointwise, precision)
        )
    kept = precision == "tf32" and spec.kind in ("depthwise", ScaleSpec.kind)
    return dataclasses.replace(spec, lanes=4, precision="float32" if kept else precision)


def lowered(scheduled, target=TARGET):
    return lower({f"k{i}": s.function for i, (_, s) in enumerate(scheduled)}, target)


def assert_right(rounded_case, specs, architecture=900, target=TARGET):
    scheduled = [(spec, base.schedule(spec, target)) for spec in specs]
    assert {s.rule.startswith("cuda-tensor-") for _, s in scheduled} == {True}
    code = lowered(scheduled, target)
    wrong = {}
    with Emulator(code.source, architecture) as emulator:
        for i, (spec, schedule) in enumerate(scheduled):
            error = rounded_case(spec).kernel_error(
                emulator, code.functions[f"k{i}"], schedule.pack_weight
            )
            if not error < (PAIR if isinstance(spec, SeparableSpec) else SUMS):
                wrong[f"{spec}, {schedule.rule} {schedule.knobs}"] = error
    assert not wrong


# Where lane 4 g + t of a warp holds its i-th value, as CuTe writes layouts: strides of t, of g and
# of the bits of i in a column-major matrix (A 16 x K, B 8 x K, C 16 x 8).
FRAGMENTS = {
    "m16n8k8.row.col.f32.tf32.tf32.f32": {"a": (16, 1, 8, 64), "b": (8, 1, 32)},
    "m16n8k8.row.col.f32.f16.f16.f32": {"a": (32, 1, 16, 8), "b": (16, 1, 8)},
    "m16n8k16.row.col.f32.f16.f16.f32": {"a": (32, 1, 16, 8, 128), "b": (16, 1, 8, 64)},
}
SUMS_FRAGMENT = (32, 1, 16, 8)


def place(layout):
    """CUDA C of the place of value `i` of lane `lane`."""
    t, g, *bits = layout
    values = [f"(i >> {n} & 1) * {stride}" for n, stride in enumerate(bits)]
    return " + ".join([f"lane % 4 * {t}", f"lane / 4 * {g}", *values])


def warp_product(name, instruction, layouts, swapped=False):
    """A kernel of one warp: C = A B by one instruction."""
    kind = "half" if "f16" in instruction else "float"
    a_count, b_count = (2 ** (len(layouts[name]) - 2) for name in "ab")
    registers = 2 if kind == "half" else 1  # values of each
    sizes = (a_count // registers, b_count // registers)
    numbers = iter(range(4, 20))
    places = [", ".join(f"%{next(numbers)}" for _ in range(size)) for size in sizes]
    a_order = [1, 0, *range(2, sizes[0])] if swapped else range(sizes[0])
    inputs = [f'"r"(x[{i}])' for i in a_order] + [f'"r"(y[{i}])' for i in range(sizes[1])]
    return f"""
extern "C" __global__ void __launch_bounds__(32) {name}(
    {kind}* __restrict__ a, {kind}* __restrict__ b, float* __restrict__ c) {{
  int lane = threadIdx.x;
  alignas(16) {kind} av[{a_count}], bv[{b_count}];
  float d[4] = {{0.0f, 0.0f, 0.0f, 0.0f}};
  for (int i = 0; i < {a_count}; ++i) av[i] = a[{place(layouts["a"])}];
  for (int i = 0; i < {b_count}; ++i) bv[i] = b[{place(layouts["b"])}];
  unsigned* x = (unsigned*)av;
  unsigned* y = (unsigned*)bv;
  asm volatile("mma.sync.aligned.{instruction} "
               "{{%0, %1, %2, %3}}, {{{places[0]}}}, {{{places[1]}}}, {{%0, %1, %2, %3}};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : {", ".join(inputs)});
  for (int i = 0; i < 4; ++i) c[{place(SUMS_FRAGMENT)}] = d[i];
}}
"""


def product_error(emulator, name, instruction):
    """Largest error of one product, all of whose sums are exact in float32."""
    steps = 16 if "k16" in instruction else 8
    dtype = "float16" if "f16" in instruction else "float32"
    rng = np.random.default_rng(0)
    a, b = (rng.integers(-9, 9, (rows, steps)).astype(dtype) for rows in (16, 8))
    code = HostCode((), (), (Launch(name, (1, 1, 1), (32, 1, 1), 0, (0, 1, 2)),))
    arguments = [a.T.reshape(-1).copy(), b.T.reshape(-1).copy()]
    (c,) = run_function(emulator, code, arguments, [Buffer((128,), "float32")])
    return np.abs(c.reshape(8, 16).T - a.astype("f8") @ b.astype("f8").T).max()


@pytest.mark.slow
def test_fragments_are_those_of_the_hardware():
    """And not others: registers in another order, and values of A at other places."""
    sources, expected = [], {}
    for i, (instruction, layouts) in enumerate(FRAGMENTS.items()):
        t, g, *bits = layouts["a"]
        other = {**layouts, "a": (t, g, *reversed(bits))}
        variants = {"right": (layouts,), "order": (layouts, True), "places": (other,)}
        for variant, arguments in variants.items():
            sources.append(warp_product(f"{variant}_{i}", instruction, *arguments))
            expected[f"{variant}_{i}"] = instruction
    with Emulator("".join(sources)) as emulator:
        for name, instruction in expected.items():
            error = product_error(emulator, name, instruction)
            assert error == 0 if name.startswith("right") else error > 1, (name, instruction)


FEW_EDGES = [
    ConvSpec(3, 21, 5, 7, 19, activation=RELU6, residual=True),
    ConvSpec(3, 3, 17, 15, 10, (3, 3), (2, 2), HALF, input_layout="nchw", activation=RELU),
]
MORE_EDGES = [
    ScaledSpec(ScaleSpec(3, 22, 5, 7, activation=RELU), ConvSpec(3, 22, 5, 7, 18, residual=True)),
    ScaledSpec(ScaleSpec(1, 72, 9, 9), ConvSpec(1, 72, 9, 9, 40)),
    ConvSpec(1, 160, 7, 7, 72, activation=Activation("hardswish")),
    ConvSpec(2, 12, 1, 1, 1),
    ConvSpec(1, 7, 9, 11, 13, (5, 3), (1, 2), (2, 1, 2, 0), (2, 1)),
    ConvSpec(1, 4, 3, 3, 4, (3, 3), (1, 1), (3, 3, 3, 3)),  # rows of padding alone
    DenseSpec(17, 130, 71, activation=Activation("hardsigmoid")),
    DenseSpec(12, 64, 100, float32_output=True),
    SeparableSpec(
        ConvSpec(1, 40, 13, 15, 40, (3, 3), (1, 1), SAME, groups=40, activation=RELU),
        ConvSpec(1, 40, 13, 15, 72, activation=RELU6),
    ),
    SeparableSpec(
        ConvSpec(3, 22, 17, 14, 22, (5, 5), (2, 2), (2, 2, 2, 2), groups=22),
        ConvSpec(3, 22, 9, 7, 18, residual=True),
    ),
]


def test_edge_shapes(rounded_case):
    specs = [at_precision(*pair) for pair in zip(FEW_EDGES, PRECISIONS, strict=True)]
    assert_right(rounded_case, specs)


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
def test_more_edge_shapes(precision, rounded_case):
    edges = [*FEW_EDGES, *MORE_EDGES][:: 2 if precision == "tf32" else 1]
    specs = [at_precision(spec, precision) for spec in edges]
    assert_right(rounded_case, [spec for spec in specs if on_tensor_cores(spec)])


def test_a_pair_in_tf32_is_the_kernel_of_float32():
    """What one kernel saves is more than tensor cores do, where ptxas would spill beside them."""
    pair = at_precision(MORE_EDGES[-2], "tf32")
    exact = at_precision(pair, "float32")
    assert exact.precision == "float32" and pair.precision == "tf32"
    kernels = [base.schedule(spec, TARGET) for spec in (pair, exact)]
    assert kernels[0].rule == kernels[1].rule == "cuda-separable"
    assert base.fingerprint(kernels[0].function) == base.fingerprint(kernels[1].function)


@pytest.mark.slow
def test_turing_has_smaller_products(rounded_case):
    """sm_75: float16 by two products of 8 steps, no tf32."""
    turing = targets.load("cuda-sm75")
    specs = [at_precision(spec, "float16") for spec in (FEW_EDGES[0], MORE_EDGES[0])]
    assert_right(rounded_case, specs, 750, turing)
    rule = base.schedule(at_precision(FEW_EDGES[0], "tf32"), turing).rule
    assert not rule.startswith("cuda-tensor-")


@pytest.mark.slow
def test_knobs_change_no_number(rounded_case):
    """The whole range of a rule's space, the largest tiles and the deepest stages among them."""
    spec = at_precision(ConvSpec(2, 100, 9, 9, 200, activation=RELU6), "float16")
    rule = next(rule for rule in base.rules_for(TARGET) if rule.takes(spec, TARGET))
    space = sorted(rule._choices(spec, TARGET), key=dataclasses.astuple)
    chosen = [space[i * (len(space) - 1) // 7] for i in range(8)]
    scheduled = [(spec, base.scheduled(rule, spec, knobs, "tuned")) for knobs in chosen]
    code = lowered(scheduled)
    with Emulator(code.source) as emulator:
        for i, (_, schedule) in enumerate(scheduled):
            error = rounded_case(spec).kernel_error(
                emulator, code.functions[f"k{i}"], schedule.pack_weight
            )
            assert error < SUMS, schedule.knobs


NETWORKS = [
    ("mobilenet_v1", 0.25, 128),
    ("mobilenet_v1", 0.5, 160),
    ("mobilenet_v1", 0.75, 192),
    ("mobilenet_v1", 1.0, 224),
    ("mobilenet_v2", 1.0, 224),
    ("mobilenet_v3_large", 1.0, 224),
]
EVERY_CASE = [(*network, batch, p) for network in NETWORKS for batch in (1, 4) for p in PRECISIONS]
SAMPLE = [
    ("mobilenet_v1", 0.25, 128, 4, "float16"),
    ("mobilenet_v2", 1.0, 224, 1, "tf32"),
    ("mobilenet_v3_large", 1.0, 224, 1, "float16"),
]
EVERYTHING = bool(os.environ.get("ALL_CUDA_SHAPES"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "alpha", "resolution", "batch", "precision"), EVERY_CASE if EVERYTHING else SAMPLE
)
def test_layer_shapes(model, alpha, resolution, batch, precision, rounded_case):
    """As the networks have them; CI every eighth of up to 8 million mult-adds."""
    imported = frontend.load_model(model, alpha=alpha, resolution=resolution, batch=batch)
    apart, sites = lower_operators(imported.mod, 4)
    found = list(dict.fromkeys(spec_of(apart[name]) for name, _ in sites))
    pairs = [
        SeparableSpec(first, second)
        for first, second in pairwise(found)
        if first.kind == "depthwise"
        and second.kind == "pointwise"
        and (first.out_channels, first.out_height) == (second.in_channels, second.in_height)
    ]
    pairs += [
        ScaledSpec(first, second)
        for first, second in pairwise(found)
        if isinstance(first, ScaleSpec) and second.kind == "pointwise"
    ]
    specs = [at_precision(spec, precision) for spec in (*found, *pairs)]
    specs = [spec for spec in specs if on_tensor_cores(spec)]
    if not EVERYTHING:
        specs = [spec for spec in specs if spec.mult_adds <= 8e6][::8]
    assert len(specs) > 1
    assert_right(rounded_case, specs)


WHOLE = [(m, p) for m in ("mobilenet_v3_large", "mobilenet_v2") for p in ("float16", "tf32")]


@pytest.mark.slow
@pytest.mark.parametrize(("model", "precision"), WHOLE if EVERYTHING else WHOLE[:1])
def test_whole_networks(model, precision):
    """Every kind of operator and every width; CI on small pictures."""
    imported = frontend.load_model(model, resolution=224 if EVERYTHING else 64)
    compiled = compile_model(imported, targets.at_precision(TARGET, precision))
    exact = evaluate(imported, samples(imported, count=1))
    report = prove(compiled, at_precision_of(exact, imported, compiled))
    assert report.passed, report.summary()
    assert f"PyTorch {precision}: " in report.summary() and "emulation" in report.summary()


def on_tensor_cores(spec):
    """Whether the rule that schedules it is one of tensor cores."""
    taken = (rule for rule in base.rules_for(TARGET) if rule.takes(spec, TARGET))
    return next(taken).name.startswith("cuda-tensor-")


@pytest.mark.slow
def test_mistakes_are_seen(rounded_case):
    """Registers in another order, factors that are cut off and not rounded, no barrier."""
    spec = at_precision(ConvSpec(1, 160, 7, 7, 72), "tf32")
    schedule = base.schedule(spec, TARGET)
    assert schedule.knobs["split"] > 1
    code = lowered([(spec, schedule)])
    for text, other, least in (
        ('"r"(x[4]), "r"(x[1])', '"r"(x[1]), "r"(x[4])', 0.05),
        ("return __uint_as_float(bits)", "return value", 3 * SUMS),
    ):
        assert text in code.source
        with Emulator(code.source.replace(text, other, 1)) as emulator:
            kernel, case = code.functions["k0"], rounded_case(spec)
            assert case.kernel_error(emulator, kernel, schedule.pack_weight) > least
    without = code.source.replace("__syncthreads();", "")
    with (
        Emulator(without) as emulator,
        pytest.raises(KernelError, match=r"no barrier|nobody wrote"),
    ):
        rounded_case(spec).kernel_error(emulator, code.functions["k0"], schedule.pack_weight)


POINTWISE = ConvSpec(1, 512, 14, 14, 512, lanes=4, activation=RELU6)
LATE = ConvSpec(1, 1024, 7, 7, 1024, lanes=4, activation=RELU6)
WIDE = ConvSpec(32, 128, 56, 56, 128, lanes=4, activation=RELU6)
STEM = ConvSpec(1, 3, 224, 224, 32, (3, 3), (2, 2), SAME, lanes=4, input_layout="nchw")
DEPTHWISE = ConvSpec(1, 512, 14, 14, 512, (3, 3), (1, 1), SAME, groups=512, lanes=4)
SPECS = [POINTWISE, WIDE, STEM, SeparableSpec(DEPTHWISE, POINTWISE)]
GPUS = [f"cuda-sm{n}" for n in (75, 80, 86, 89, 90, 100, 120)]


def with_bounds(source, scheduled):
    """As the network's compiler has it: ptxas is told how many blocks of an SM there will be."""
    for i, (_, schedule) in enumerate(scheduled):
        least = int(schedule.function.attrs[MIN_BLOCKS])
        bounds = re.compile(rf"__launch_bounds__\((\d+)\)(?= k{i}_kernel)")
        source, found = bounds.subn(rf"__launch_bounds__(\1, {least})", source)
        assert found
    return source


@pytest.mark.slow
@pytest.mark.parametrize("name", GPUS)
def test_machine_code_for_every_architecture(name):
    """Without spills, and as many blocks of an SM as its other resources allow."""
    target = targets.load(name)
    for precision in PRECISIONS[1 if name == "cuda-sm75" else 0 :]:
        specs = [at_precision(spec, precision) for spec in SPECS]
        if precision == "tf32":  # where pairs are not on tensor cores
            specs = [spec for spec in specs if not isinstance(spec, SeparableSpec)]
        scheduled = [(spec, base.schedule(spec, target)) for spec in specs]
        source = with_bounds(lowered(scheduled, target).source, scheduled)
        image = nvrtc.compile_source(source, target.gpu.arch)
        resources = parse_log(image.log)
        assert len(resources) == len(specs)
        for i, (_, schedule) in enumerate(scheduled):
            used, knobs = resources[f"k{i}_kernel"], schedule.knobs
            assert used.stack_bytes == used.spill_store_bytes == used.spill_load_bytes == 0, knobs
            threads = 32 * knobs["pixel_warps"] * knobs["channel_warps"] * knobs["split"]
            resident = occupancy(threads, used.registers, used.shared_bytes, target.gpu)
            assert resident.blocks_per_sm * threads >= 256, (knobs, resident)


@pytest.mark.parametrize("name", GPUS)
def test_analytic_knobs_fit_every_gpu(name):
    target = targets.load(name)
    for spec in SPECS:
        spec = at_precision(spec, "float16")
        rule = next(rule for rule in base.rules_for(target) if rule.takes(spec, target))
        knobs = rule.analytic(spec, target)
        assert knobs.threads <= target.gpu.threads_per_block
        assert 4 * knobs.shared_floats <= SHARED_BYTES
        assert knobs.registers("float16") <= MOST_REGISTERS


def test_small_maps_reach_most_multiprocessors():
    for spec in (POINTWISE, LATE):
        for precision in PRECISIONS:
            spec = at_precision(spec, precision)
            rule = next(rule for rule in base.rules_for(TARGET) if rule.takes(spec, TARGET))
            tiles = problem_of(spec).tiles(rule.analytic(spec, TARGET))
            assert tiles[0] * tiles[1] >= 0.7 * TARGET.gpu.sms
