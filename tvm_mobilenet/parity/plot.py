"""How errors grow through the network, operator by operator."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tvm_mobilenet.parity.judge import Verdict
from tvm_mobilenet.parity.per_layer import OperatorParity, PerLayerReport


def draw(report: PerLayerReport, path: Path, title: str) -> Path:
    """Write the picture; `profiling.plot.check` says beforehand whether it can be.

    Relative L2 error against float64 over the operators in order: in the running network, by
    itself on the reference's inputs, and PyTorch's own at float32 with what is allowed.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    operators = [op for op in report.operators if op.propagated and op.isolated]
    places = [operator.index for operator in operators]
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "tvm-mobilenet"}):
        figure = Figure(figsize=(9, 5), layout="constrained")
        axes = figure.subplots()
        running = [op.propagated for op in operators if op.propagated]
        theirs = [verdict.torch_relative_l2 for verdict in running]
        allowed = [verdict.allowed_relative_l2 for verdict in running]
        alone = _errors(operators, lambda op: op.isolated)
        bottom = min((error for error in (*theirs, *alone) if error), default=1e-9) / 2
        axes.fill_between(places, bottom, allowed, color="C7", alpha=0.2, label="allowed")
        axes.plot(places, theirs, "C7--", label="PyTorch float32, in the network")
        ours = [verdict.relative_l2 for verdict in running]
        axes.plot(places, ours, "C0.-", label="in the network")
        axes.plot(places, alone, "C1.", label="each operator alone")
        if wrong := [op for op in operators if op.verdict != "passed"]:
            axes.plot(
                [op.index for op in wrong],
                _errors(
                    wrong, lambda op: op.isolated if op.verdict == "AT FAULT" else op.propagated
                ),
                "rx",
                markersize=10,
                label="failed",
            )
        axes.set_yscale("log", nonpositive="mask")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("operator, in order of execution")
        axes.set_ylabel("relative L2 error against float64")
        axes.set_title(title)
        axes.legend()
        figure.savefig(path, dpi=144)
    return path


def _errors(
    operators: list[OperatorParity], choose: Callable[[OperatorParity], Verdict | None]
) -> list[float]:
    return [verdict.relative_l2 for operator in operators if (verdict := choose(operator))]
