"""Executed ARM instructions per inference under QEMU, one thread: NEON code's regression figure.

    python benchmarks/arm_instructions.py [--target rpi4] [--per-operator] [NAME ...]

No board is needed; QEMU's user mode and a cross compiler are. The counts repeat to the last digit.
Columns: million instructions; the floor, one FMLA for every four mult-adds; their ratio.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "0.25/128": ("mobilenet_v1", {"alpha": 0.25, "resolution": 128}),
    "0.5/160": ("mobilenet_v1", {"alpha": 0.5, "resolution": 160}),
    "1.0/224": ("mobilenet_v1", {}),
    "v2": ("mobilenet_v2", {}),
    "v3-large": ("mobilenet_v3_large", {}),
}


def main() -> int:
    """Build each network, prove it, count, print a row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("names", nargs="*", default=list(NETWORKS), metavar="NAME")
    parser.add_argument("--target", default="cortex-a72")
    parser.add_argument("--per-operator", action="store_true")
    args = parser.parse_args()
    if unknown := [name for name in args.names if name not in NETWORKS]:
        parser.error(f"unknown {unknown[0]}; there are {', '.join(NETWORKS)}")

    from tvm_mobilenet import deploy
    from tvm_mobilenet.deploy.emulate import count_instructions

    sys.stdout.write(f"{'network':10} {'million':>9} {'floor':>8} {'ratio':>6}  on {args.target}\n")
    for name in args.names:
        model, options = NETWORKS[name]
        with tempfile.TemporaryDirectory() as folder:
            built = deploy.build(
                model, target=args.target, output=Path(folder) / "bundle", **options
            )
            counted = count_instructions(built.path)
        rows = [(name, counted.total, sum(o.mult_adds for o in built.compiled.operators) / 4)]
        if args.per_operator:
            operators = zip(built.compiled.operators, counted.operators, strict=True)
            rows += [(f"  {o.kind} {o.shape}", n, o.mult_adds / 4) for o, n in operators]
        for label, executed, floor in rows:
            ratio = f"{executed / floor:6.2f}" if floor else "     -"
            sys.stdout.write(f"{label:10} {executed / 1e6:9.3f} {floor / 1e6:8.3f} {ratio}\n")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
