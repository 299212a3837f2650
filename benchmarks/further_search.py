"""What a long search finds beyond the budget of `tune`.

    python benchmarks/further_search.py [MODEL] --budget 180 --minutes 60 --logs DIR

First `tune MODEL --budget` on one thread into DIR, as anyone would run it; then the same search
goes on for that many minutes and is never content: no operator is given up.
Then both networks, with the records of before and of after, are raced in turns. Interrupted, the
same command goes on. Prints one line of each search and how much faster the second network is.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from tvm_mobilenet import frontend
from tvm_mobilenet.schedules.base import rules_for
from tvm_mobilenet.tuning import network, search
from tvm_mobilenet.tuning.device import Local
from tvm_mobilenet.tuning.records import RECORDS, read_records
from tvm_mobilenet.tuning.task import Candidate
from tvm_mobilenet.tuning.tune import local_target, tune


def say(text: str) -> None:
    """A line of progress."""
    sys.stderr.write(f"{text}\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model", nargs="?", default="mobilenet_v1")
    parser.add_argument("--alpha", type=float, default=1.0)
    parser.add_argument("--resolution", type=int, default=224)
    parser.add_argument("--budget", type=float, default=180.0, help="seconds of the first search")
    parser.add_argument("--minutes", type=float, default=60.0, help="of the further search")
    parser.add_argument("--logs", type=Path, required=True)
    args = parser.parse_args()
    options = {"alpha": args.alpha, "resolution": args.resolution}
    target, cpus = local_target("native", 1)
    imported = frontend.load_model(args.model, **options)

    def searched(seconds: float) -> Path:
        outcome = tune(
            args.model, threads=1, seconds=seconds, logs=args.logs, info=say, warn=say, **options
        )
        best = outcome.predicted("best") * 1e3
        sys.stdout.write(
            f"{outcome.trials} trials in all: best alone {best:.3f} ms, end to end "
            f"{outcome.speed_up.value if outcome.speed_up else 1.0:.3f} times the analytic choice\n"
        )
        return outcome.directory / RECORDS

    def choice(records: Path) -> dict[str, Candidate]:
        rules = {rule.name: rule for rule in rules_for(target)}
        return {
            r.operator: Candidate(rules[r.rule], rules[r.rule].knobs_class(**r.knobs))
            for r in read_records(records)
        }

    first = args.logs / "first.jsonl"
    if not first.exists():
        shutil.copy(searched(args.budget), first)
    search.PATIENCE = sys.maxsize  # no operator is given up
    last = searched(args.minutes * 60)
    with tempfile.TemporaryDirectory() as folder:
        networks = [
            network.compile_network(imported, target, choice(records), Path(folder) / f"{name}.so")
            for name, records in (("first", first), ("last", last))
        ]
        before, after = network.time_networks(networks, imported, Local(cpus))
    gain = network.ratio(before, after)
    sys.stdout.write(
        f"{args.minutes:.0f} minutes more: {gain.value - 1:+.1%} "
        f"({gain.low - 1:+.1%} to {gain.high - 1:+.1%}) end to end\n"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
