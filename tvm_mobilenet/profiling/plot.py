"""Latency against mult-adds: the paper's figure 4 with time in place of accuracy."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from tvm_mobilenet.errors import MissingToolError, UsageError
from tvm_mobilenet.profiling.bench import BenchReport, Cell
from tvm_mobilenet.profiling.contestants import OURS, PEERS
from tvm_mobilenet.profiling.exports import check_writable

SUFFIXES = (".png", ".svg")
_COLOURS = {name: f"C{i}" for i, name in enumerate([OURS, *PEERS])}  # the same in every panel


def check(path: Path) -> None:
    """Whether `draw` will be able to: before minutes of measuring, not after.

    Raises UsageError for another suffix than `SUFFIXES`, InputError when no file can be written
    there, MissingToolError without matplotlib.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"--plot {path}: the name must end in {' or '.join(SUFFIXES)}")
    check_writable(path, "--plot")
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingToolError("--plot needs matplotlib: pip install matplotlib")


def draw(report: BenchReport, path: Path) -> Path:
    """Write the picture: one panel for each threads and batch, one line a contestant, log-log.

    Points are medians per image, with the 10th to 90th percentile as a bar; the dashed line is
    what the FMA peak of the run allows.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    kinds = sorted({(cell.threads, cell.batch) for cell in report.cells})
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "tvm-mobilenet"}):
        figure = Figure(figsize=(1.5 + 5.5 * len(kinds), 5.5), layout="constrained")
        panels = figure.subplots(1, len(kinds), squeeze=False)[0]
        for panel, (threads, batch) in zip(panels, kinds, strict=True):
            cells = [c for c in report.cells if (c.threads, c.batch) == (threads, batch)]
            _panel(panel, sorted(cells, key=lambda c: c.mult_adds), batch)
            panel.set_title(f"{threads} thread{'s'[: threads > 1]}, batch {batch}")
        figure.suptitle(f"{report.cpu}: float32, median of at least {report.runs} runs")
        figure.savefig(path, dpi=144)
    return path


def _panel(panel, cells: Sequence[Cell], batch: int) -> None:  # type: ignore[no-untyped-def]
    from matplotlib.ticker import LogLocator, NullFormatter

    names = dict.fromkeys(m.contestant for cell in cells for m in cell.measurements)
    for name in names:
        points = [(c.mult_adds / batch / 1e6, m.ms) for c in cells if (m := c.of(name))]
        medians = [ms.median / batch for _, ms in points]
        panel.errorbar(
            [x for x, _ in points],
            medians,
            yerr=[
                [(ms.median - ms.p10) / batch for _, ms in points],
                [(ms.p90 - ms.median) / batch for _, ms in points],
            ],
            label=name,
            color=_COLOURS[name],
            marker="o",
            markersize=4,
            capsize=2,
            linewidth=2.4 if name == OURS else 1.1,
            zorder=3 if name == OURS else 2,
        )
    limits = [(c.mult_adds / batch / 1e6, c) for c in cells if c.peak_gflops]
    panel.plot(
        [x for x, _ in limits],
        [2 * x / (c.peak_gflops or 1) for x, c in limits],
        linestyle="--",
        marker="_",
        color="0.4",
        label="FMA peak",
    )
    panel.set_xscale("log")
    panel.set_yscale("log")
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter(NullFormatter())
    panel.set_xlabel("Mult-Adds per image (millions)")
    panel.set_ylabel("latency per image (ms)")
    panel.grid(visible=True, which="both", alpha=0.25)
    panel.legend()
