"""The report of gpu.py: one Markdown page with the device, dates, and what was not measured."""

from __future__ import annotations

from typing import Any


def markdown(document: dict[str, Any]) -> str:
    """`gpu.json` as a page: speed, parity, tuning, every kernel, failures by their message."""
    steps = document["steps"]
    device = document.get("device", "no GPU: nothing was measured")
    dates = sorted(entry["date"] for entry in steps.values())
    lines = ["# On a GPU", "", device, ""]
    if dates:
        lines += [f"Measured from {dates[0]} to {dates[-1]} by `benchmarks/gpu.py run`.", ""]
    lines += _speed(steps) + _parity(steps) + _tuning(steps) + _failures(steps)
    for name, entry in steps.items():
        lines += _kernels(name, entry)
    return "\n".join(lines) + "\n"


def _speed(steps: dict[str, Any]) -> list[str]:
    found = {name: entry for name, entry in steps.items() if "back_to_back" in entry}
    if not found:
        return []
    ways = list(dict.fromkeys(way for e in found.values() for way in e["back_to_back"]))
    lines = ["## Speed", "", "Median microseconds of an inference, contestants in turns: one after"]
    lines += ["another without waiting, and in brackets single calls, each waited for.", ""]
    lines += [f"| network | {' | '.join(ways)} | over the best of PyTorch | launches |"]
    lines += ["|---" * (len(ways) + 3) + "|"]
    for name, entry in found.items():
        cells = []
        for way in ways:
            block, single = entry["back_to_back"].get(way), entry["single"].get(way)
            cells.append(f"{block['p50_us']:.1f} ({single['p50_us']:.1f})" if block else "-")
        share = entry["speed_up_over_best_pytorch"]
        over = "-" if share is None else f"{share:.2f}"
        network = name.removeprefix("compare ")
        lines += [f"| {network} | {' | '.join(cells)} | {over} | {entry['launches']} |"]
    return [*lines, ""]


def _parity(steps: dict[str, Any]) -> list[str]:
    found = [(n, e) for n, e in steps.items() if "graph_equals_launches" in e]
    if not found:
        return []
    lines = ["## Parity", "", "| network | outcome | CUDA graph equals single launches |"]
    lines += ["|---|---|---|"]
    for name, entry in found:
        same = "yes, to the bit" if entry["graph_equals_launches"] else "no"
        lines += [f"| {name.removeprefix('parity ')} | {entry['summary']} | {same} |"]
    return [*lines, ""]


def _tuning(steps: dict[str, Any]) -> list[str]:
    found = [(n, e) for n, e in steps.items() if "gains" in e]
    if not found:
        return []
    lines = ["## Tuning", "", "| network | operators | records kept | network, times as fast |"]
    lines += ["|---|---|---|---|"]
    for name, entry in found:
        gain = f"{entry['network_gain']:.3f}" if entry["network_gain"] else "-"
        network = name.removeprefix("tune ")
        lines += [f"| {network} | {entry['operators']} | {entry['records']} | {gain} |"]
    return [*lines, ""]


def _failures(steps: dict[str, Any]) -> list[str]:
    lines = [f"- {name}: {e['error']}" for name, e in steps.items() if e["state"] == "failed"]
    lines += [
        f"- {name}, {part}: {why}"
        for name, entry in steps.items()
        for part, why in entry.get("not_measured", {}).items()
    ]
    return ["## What failed", "", *lines, ""] if lines else []


def _kernels(name: str, entry: dict[str, Any]) -> list[str]:
    if not entry.get("kernels"):
        return []
    lines = [f"## Kernels, {name.removeprefix('compare ')}", ""]
    lines += ["Mean time of a launch in the running network; shares of the GPU's peak.", ""]
    lines += ["| kernel | launches | us | FLOPs | bandwidth |", "|---|---|---|---|---|"]
    lines += [
        f"| {k['kernel']} | {k['launches']} | {k['mean_us']:.2f} | "
        f"{_percent(k['flops_share'])} | {_percent(k['bandwidth_share'])} |"
        for k in entry["kernels"]
    ]
    return [*lines, ""]


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"
