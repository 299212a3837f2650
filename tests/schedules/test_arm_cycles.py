"""ARM's inner loops by LLVM's models of the cores: what share of the FMLA rate they reach.

The instructions are those of the compiled layers, not of the templates alone: whatever LLVM made
of them, a spill among them, say, is in what is judged.
"""

from __future__ import annotations

import dataclasses
import functools
import re

import pytest
import tvm

from tvm_mobilenet import targets
from tvm_mobilenet.compiler_pass.lower_operators import lower_operators
from tvm_mobilenet.compiler_pass.schedule_operators import spec_of
from tvm_mobilenet.frontend import load_model
from tvm_mobilenet.schedules import base
from tvm_mobilenet.schedules.spec import ConvSpec
from tvm_mobilenet.tuning.static.mca import cycles, hand_written

pytestmark = [pytest.mark.slow, pytest.mark.arm, pytest.mark.needs_tool("llvm-mca", "llvm")]

CORES = ("cortex-a72", "cortex-a76")  # llvm-mca has no own model of A76: Neoverse N1's
NETWORKS = (
    ("mobilenet_v1", 0.25, 128),
    ("mobilenet_v1", 1.0, 224),
    ("mobilenet_v2", 1.0, 224),
    ("mobilenet_v3_large", 1.0, 224),
)
TRIPLE = "aarch64-linux-gnu"


@functools.cache
def layers(kind: str) -> list[ConvSpec]:
    """The networks' distinct layers of a kind."""
    found: dict[ConvSpec, None] = {}
    for name, alpha, resolution in NETWORKS:
        imported = load_model(name, alpha=alpha, resolution=resolution, exporter="torchscript")
        mod, sites = lower_operators(imported.mod, lanes=4)
        specs = [spec_of(mod[symbol]) for symbol, _ in sites]
        found |= {s: None for s in specs if isinstance(s, ConvSpec) and s.kind == kind}
    return list(found)


def hot_loops(kind: str, core: str) -> dict[str, list[str]]:
    """By layer, the assembly of the full tile."""
    target = dataclasses.replace(targets.load(core), cores=1)
    return {
        str(spec): full_tile(base.schedule(spec, target).function, target) for spec in layers(kind)
    }


def full_tile(function: tvm.tirx.PrimFunc, target: targets.TargetSpec) -> list[str]:
    """The assembly with the most sums in a compiled function."""
    mod = tvm.IRModule({"main": function.with_attr("global_symbol", "main")})
    compiled = tvm.compile(mod, target=target.tvm_target())
    pieces = hand_written(compiled.mod.inspect_source("asm"))
    return max(pieces, key=lambda piece: len(sums(piece)))


def sums(piece: list[str]) -> set[str]:
    """The registers that FMLA adds to."""
    return {m[1] for line in piece if (m := re.match(r"fmla (v\d+)\.4s", line))}


def alone(piece: list[str], prefix: str) -> list[str]:
    return [line for line in piece if line.startswith(prefix)]


@pytest.mark.parametrize("core", CORES)
def test_pointwise_layers_reach_the_fmla_rate(core: str) -> None:
    cpu = targets.load(core).mca_cpu
    rate = 24 / cycles([[f"fmla v{i}.4s, v30.4s, v31.s[0]" for i in range(24)]], TRIPLE, cpu)[0]
    loops = hot_loops("pointwise", core)
    assert len(loops) > 40
    taken = cycles(list(loops.values()), TRIPLE, cpu)
    shares = {
        layer: len(alone(piece, "fmla")) / each / rate
        for (layer, piece), each in zip(loops.items(), taken, strict=True)
    }
    assert {layer: share for layer, share in shares.items() if share < 0.85} == {}
    spills = {layer for layer, piece in loops.items() if any("[sp" in line for line in piece)}
    assert spills == set()


@pytest.mark.parametrize("core", CORES)
def test_depthwise_layers_are_near_their_bound(core: str) -> None:
    """Of loads and of FMLAs alone, each as fast as the core can: at most 1.5 times the larger."""
    cpu = targets.load(core).mca_cpu
    loops = hot_loops("depthwise", core)
    assert len(loops) > 20
    pieces = list(loops.values())
    whole = cycles(pieces, TRIPLE, cpu)
    fma = cycles([alone(piece, "fmla") for piece in pieces], TRIPLE, cpu)
    loads = cycles([alone(piece, "ld") for piece in pieces], TRIPLE, cpu)
    ratios = {
        layer: each / max(bounds)
        for layer, each, *bounds in zip(loops, whole, fma, loads, strict=True)
    }
    assert {layer: ratio for layer, ratio in ratios.items() if ratio > 1.5} == {}


def distances(piece: list[str]) -> list[int]:
    """Instructions between each load of a loop, or behind the first FMLA, and its first use."""
    loop = piece[-1].startswith("b.")
    start = 0 if loop else next(i for i, line in enumerate(piece) if line.startswith("fmla"))
    found = []
    for at, line in enumerate(piece[start:], start):
        behind = [*piece[at + 1 :], *(piece if loop else [])]
        loaded = re.findall(r"\b[qdsv](\d+)", line.split("[")[0]) if line.startswith("ld") else []
        found += [next(i for i, x in enumerate(behind) if f"v{r}." in x) for r in loaded]
    return found


@pytest.mark.parametrize("kind", ["pointwise", "depthwise", "stem"])
@pytest.mark.parametrize("core", ["cortex-a53", "cortex-a55"])
def test_cores_that_issue_in_order_load_ahead(core: str, kind: str) -> None:
    """No FMLA waits for a load: 4 cycles on A53, 3 on A55, of two instructions each.

    And more FMLAs a cycle than with loads right before their use, by the model of A55.
    """
    target = dataclasses.replace(targets.load(core), cores=1)
    for spec in layers(kind)[:: 1 if kind == "stem" else 4]:
        rule = next(rule for rule in base.rules_for(target) if rule.takes(spec, target))
        chosen = rule.analytic(spec, target)
        other = dataclasses.replace(chosen, early=False)
        pieces = [full_tile(rule.build(spec, knobs), target) for knobs in (chosen, other)]
        assert min(distances(pieces[0])) >= 8 > min(distances(pieces[1])), spec
        early, late = (
            len(alone(piece, "fmla")) / each
            for piece, each in zip(pieces, cycles(pieces, TRIPLE, target.mca_cpu), strict=True)
        )
        assert early > late, spec
