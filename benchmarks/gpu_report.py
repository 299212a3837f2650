"""The report of gpu.py: one Markdown page with the device, dates, and what was not measured."""

from __future__ import annotations

from typing import Any

OURS, COMPILE = "ours", "torch.compile"
GOALS_FOR = "H200"
GOALS = {  # microseconds of an inference back to back, by cell
    "V1 1.0/224 batch 1 float32": 100.0,
    "V1 1.0/224 batch 1 float16": 70.0,
    "V1 1.0/224 batch 32 float32": 1500.0,
    "V1 1.0/224 batch 32 tf32": 700.0,
    "V1 1.0/224 batch 32 float16": 350.0,
}
AHEAD_AT_1, AHEAD = 1.5, 1.0  # times as fast as the best of PyTorch: at batch 1, at all others
_WAYS = ("compare tuned", "compare", "time")  # to measure a cell; the first there is counts


def markdown(document: dict[str, Any]) -> str:
    """`gpu.json` as a page: goals, speed, parity, tuning, kernels, failures by their message."""
    steps = document["steps"]
    device = document.get("device", "no GPU: nothing was measured")
    dates = sorted(entry["date"] for entry in steps.values())
    lines = ["# On a GPU", "", device, ""]
    if dates:
        first, last = dates[0][:19], dates[-1][:19]
        lines += [f"Measured from {first} to {last} UTC by `benchmarks/gpu.py run`.", ""]
    cells = _cells(steps)
    lines += _goals(cells, device) + _speed(cells) + _parity(steps) + _tuning(steps)
    lines += _failures(steps)
    for name, entry in cells.items():
        lines += _kernels(name, entry)
    return "\n".join(lines) + "\n"


def _cells(steps: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """By network, batch size and precision the comparison that counts, in the order of steps."""
    cells: dict[str, dict[str, Any]] = {}
    for way in _WAYS:
        for name, entry in steps.items():
            cell = name.removeprefix(f"{way} ")
            if cell != name and not cell.startswith("tuned ") and "back_to_back" in entry:
                proof = steps.get(f"parity {cell.partition(',')[0]}", {}).get("state") == "done"
                proven = proof or way == "compare tuned" or "summary" in entry
                cells.setdefault(cell, entry | {"way": way, "proven": proven})
    return cells


def _goals(cells: dict[str, dict[str, Any]], device: str) -> list[str]:
    if not cells:
        return []
    lines = ["## Goals", ""]
    if GOALS_FOR not in device:
        lines += [f"The times are goals for an {GOALS_FOR}, which this GPU is not.", ""]
    lines += ["| goal | measured | outcome |", "|---|---|---|"]
    for cell, goal in GOALS.items():
        measured, outcome = "-", "not measured"
        if cell in cells:
            time = cells[cell]["back_to_back"][OURS]["p50_us"]
            measured, outcome = f"{time:.1f} us", _outcome(goal / time, f"{goal - time:+.1f} us")
        lines.append(f"| {cell}: at most {goal:.0f} us | {measured} | {outcome} |")
    for cell, entry in cells.items():
        if "," in cell:  # a variant of another one
            continue
        share = entry["speed_up_over_best_pytorch"]
        least = AHEAD_AT_1 if " batch 1 " in cell else AHEAD
        measured = "-" if share is None else f"{share:.2f}"
        outcome = (
            "not measured" if share is None else _outcome(share / least, f"{share - least:+.2f}")
        )
        if share is not None and COMPILE not in entry["back_to_back"]:
            outcome += f", without {COMPILE}"
        lines.append(f"| {cell}: {least} times the best of PyTorch | {measured} | {outcome} |")
    return [*lines, ""]


def _outcome(share: float, margin: str) -> str:
    return f"reached ({margin})" if share >= 1 else f"**missed** ({margin}, {share:.0%} of it)"


def _speed(cells: dict[str, dict[str, Any]]) -> list[str]:
    if not cells:
        return []
    ways = list(dict.fromkeys(way for e in cells.values() for way in e["back_to_back"]))
    lines = ["## Speed", "", "Median microseconds of an inference, contestants in turns: one after"]
    lines += [
        "another without waiting, and in brackets single calls, each waited for. Knobs: those"
    ]
    lines += ["that come with the package, or tuned here.", ""]
    lines += [f"| network | knobs | {' | '.join(ways)} | over the best of PyTorch | launches |"]
    lines += ["|---" * (len(ways) + 4) + "|"]
    for name, entry in cells.items():
        found = []
        for way in ways:
            block, single = entry["back_to_back"].get(way), entry["single"].get(way)
            found.append(f"{block['p50_us']:.1f} ({single['p50_us']:.1f})" if block else "-")
        share = entry["speed_up_over_best_pytorch"]
        over = "-" if share is None else f"{share:.2f}"
        knobs = "tuned" if entry["way"] == _WAYS[0] else "shipped"
        name += "" if entry["proven"] else " (**not proven**)"
        lines += [f"| {name} | {knobs} | {' | '.join(found)} | {over} | {entry['launches']} |"]
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
    lines += [f"- {name}: still running" for name, e in steps.items() if e["state"] == "running"]
    lines += [
        f"- {name}, {part}: {why}"
        for name, entry in steps.items()
        for part, why in entry.get("not_measured", {}).items()
    ]
    return ["## What failed or was not measured", "", *lines, ""] if lines else []


def _kernels(name: str, entry: dict[str, Any]) -> list[str]:
    if not entry.get("kernels"):
        return []
    lines = [f"## Kernels, {name}", ""]
    lines += [
        "Mean time of a launch in the running network; shares of the GPU's peak: of the FLOPs"
    ]
    lines += ["in this precision, and of the memory's bandwidth.", ""]
    lines += ["| kernel | launches | us | FLOPs | bandwidth |", "|---|---|---|---|---|"]
    lines += [
        f"| {k['kernel']} | {k['launches']} | {k['mean_us']:.2f} | "
        f"{_percent(k['flops_share'])} | {_percent(k['bandwidth_share'])} |"
        for k in entry["kernels"]
    ]
    return [*lines, ""]


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"
