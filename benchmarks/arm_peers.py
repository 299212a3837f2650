"""Executed ARM instructions per inference under QEMU, one thread: ours and other runtimes.

    python benchmarks/arm_peers.py --root DIR [--peers ncnn,litert,onnxruntime] [NAME ...]

Needs Debian's qemu-user and g++-aarch64-linux-gnu, the peers' converters (pip install '.[bench]'),
and util-linux' unshare. DIR keeps, from run to run, an arm64 Python unpacked from Debian's packages
and the peers' own aarch64 wheels (0.5 GB), both fetched by apt and pip. The peers run there by the
very code and settings of `tvm-mobilenet bench`; their outputs are compared with PyTorch's first.
They and ours see the /proc/cpuinfo of a plain Cortex-A72, or they choose kernels by the host's.

A peer's count is a tenth of the difference between eleven inferences and one, so that Python,
loading and packing cancel. Columns: million instructions; the floor, one FMLA for every four
mult-adds; ours over the best peer.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from arm_instructions import NETWORKS

from tvm_mobilenet import deploy
from tvm_mobilenet.deploy.emulate import count_instructions, emulator, executed
from tvm_mobilenet.profiling.contestants import contestant
from tvm_mobilenet.profiling.subject import Prepared, Subject, prepare

REPOSITORY = Path(__file__).parents[1]
CORE = "cortex-a72"
PEERS = {"ncnn": "ncnn", "litert": "ai-edge-litert", "onnxruntime": "onnxruntime"}
_LIBRARY = {"ncnn": "ncnn.cpython", "litert": "_pywrap", "onnxruntime": "onnxruntime_pybind11"}
PACKAGES = ("python3.11", "libgomp1", "libstdc++6")  # of Debian 12
PLATFORMS = [f"manylinux_2_{n}_aarch64" for n in (28, 27, 24, 17)] + ["manylinux2014_aarch64"]
TOLERANCE = 1e-3  # of the largest output: a peer that is further off computes something else
_CPUINFO = """processor\t: {}
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm crc32 cpuid
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: 0xd08
CPU revision\t: 3

"""
# What runs inside: a contestant of `bench`, that many times.
_GUEST = """
import sys
from pathlib import Path
import numpy
from tvm_mobilenet.profiling.contestants import contestant
name, artifact, picture, runs, output = sys.argv[1:]
peer = contestant(name)()
peer.load(Path(artifact), 1)
peer.feed([numpy.load(picture)])
for _ in range(int(runs)):
    peer.run()
numpy.save(output, peer.outputs()[0])
Path(output).with_suffix(".maps").write_bytes(Path("/proc/self/maps").read_bytes())
"""


def install(root: Path, peers: list[str]) -> None:
    """An arm64 Python and the peers' wheels below ``root``, unless they are there."""
    if not (root / "usr/bin/python3.11").exists():
        place = root / "apt"
        for part in ("state/lists/partial", "cache/archives/partial"):
            (place / part).mkdir(parents=True, exist_ok=True)
        (place / "status").touch()
        options = {
            "APT::Architecture": "arm64",
            "APT::Architectures": "arm64",
            "Dir::State": place / "state",
            "Dir::State::status": place / "status",
            "Dir::Cache": place / "cache",
            "Debug::NoLocking": "1",
            "APT::Install-Recommends": "false",
        }
        apt = ["apt-get", "-qq", *(f"-o{name}={value}" for name, value in options.items())]
        subprocess.run([*apt, "update"], check=True)
        subprocess.run([*apt, "install", "--download-only", "--yes", *PACKAGES], check=True)
        for package in sorted((place / "cache/archives").glob("*.deb")):
            subprocess.run(["dpkg-deb", "--extract", package, root], check=True)
    wanted = [f"{PEERS[name]}=={version(PEERS[name])}" for name in peers]
    wanted.append(f"numpy=={np.__version__}")
    noted = root / "wheels.txt"
    if not noted.exists() or not set(wanted) <= set(noted.read_text().split()):
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--upgrade"]
        pip += ["--target", str(root / "wheels"), "--only-binary=:all:", "--python-version=3.11"]
        pip += [f"--platform={platform}" for platform in PLATFORMS]
        subprocess.run([*pip, *wanted], check=True)
        noted.write_text("\n".join(wanted))


def machine(root: Path, folder: Path) -> list[object]:
    """What runs a program of ``root`` as on the core, in a mount namespace with its cpuinfo."""
    cpuinfo = folder / "cpuinfo"
    cpuinfo.write_text("".join(_CPUINFO.format(core) for core in range(4)))
    private = f'mount --bind {cpuinfo} /proc/cpuinfo && exec "$@"'
    become_root = [] if os.geteuid() == 0 else ["--map-root-user"]
    inside = {
        "LD_LIBRARY_PATH": root / "usr/lib/aarch64-linux-gnu",
        "PYTHONPATH": f"{root / 'wheels'}:{REPOSITORY}",
        "OMP_NUM_THREADS": 1,
    }
    return [
        *("unshare", "--mount", *become_root, "sh", "-c", private, "sh"),
        *(*emulator("aarch64-linux-gnu", CORE), "-L", root),
        *(word for name, value in inside.items() for word in ("-E", f"{name}={value}")),
    ]


@dataclass(frozen=True)
class Guest:
    """A peer with its model and a picture, to be run under QEMU. Notes lie in ``folder``."""

    name: str
    machine: list[object]  # QEMU's command
    folder: Path
    python: Path
    artifact: Path
    expected: np.ndarray

    def program(self, runs: int) -> list[object]:
        """That many inferences. The outputs are left in y.npy, where its code was in y.maps."""
        files = [self.folder / file for file in ("guest.py", "x.npy", "y.npy")]
        script, picture, output = files
        return [self.python, "-S", script, self.name, self.artifact, picture, runs, output]

    def check(self) -> None:
        """Raises SystemExit when the outputs of the last run are not PyTorch's."""
        got, expected = np.load(self.folder / "y.npy"), self.expected
        error = np.abs(got - expected).max() / np.abs(expected).max()
        if not error <= TOLERANCE:
            raise SystemExit(f"{self.name}: its outputs differ from PyTorch's by {error:.1e}")

    def code(self) -> tuple[Path, int, int, int]:
        """Of the last run: the peer's library, where it lay, and its code's begin and end."""
        rows = [line.split() for line in (self.folder / "y.maps").read_text().splitlines()]
        mine = [row for row in rows if len(row) > 5 and _LIBRARY[self.name] in row[5]]
        spans = {tuple(row[1:3]): [int(at, 16) for at in row[0].split("-")] for row in mine}
        base = next(span[0] for (_, offset), span in spans.items() if int(offset, 16) == 0)
        begin, end = next(span for (rights, _), span in spans.items() if "x" in rights)
        return Path(mine[0][5]), base, begin, end


def guest(name: str, prepared: Prepared, root: Path, folder: Path) -> Guest:
    """Convert the model for a peer."""
    place = folder / name
    place.mkdir()
    artifact = contestant(name)().convert(prepared.source, place)
    np.save(place / "x.npy", prepared.inputs[0])
    (place / "guest.py").write_text(_GUEST)
    # a guest of its own hash seed would differ in its dictionaries
    command = [*machine(root, folder), "-E", "PYTHONHASHSEED=0"]
    python = root / "usr/bin/python3.11"
    return Guest(name, command, place, python, artifact, prepared.expected[0])


def count_peer(peer: Guest) -> float:
    """Instructions per inference."""
    once, often = (executed(peer.machine, *peer.program(runs))[-1] for runs in (1, 11))
    peer.check()
    return (often - once) / 10


def main() -> int:
    """Count each network for each runtime; print a row, and at the end the versions."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("names", nargs="*", default=list(NETWORKS), metavar="NAME")
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--peers", default=",".join(PEERS))
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    peers = args.peers.split(",")
    if unknown := [name for name in args.names if name not in NETWORKS]:
        parser.error(f"unknown {unknown[0]}; there are {', '.join(NETWORKS)}")
    if unknown := [name for name in peers if name not in PEERS]:
        parser.error(f"unknown peer {unknown[0]}; there are {', '.join(PEERS)}")
    root = args.root.resolve()
    root.mkdir(parents=True, exist_ok=True)
    install(root, peers)

    table = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what converters print is not the table
    write = table.write
    write(f"{'network':10} {'floor':>8} {'ours':>8}" + "".join(f" {p:>12}" for p in peers))
    write(f" {'ratio':>6}  on {CORE}\n")
    rows: dict[str, Any] = {}
    for name in args.names:
        model, options = NETWORKS[name]
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            built = deploy.build(model, target=CORE, output=folder / "bundle", **options)
            ours = count_instructions(built.path).total
            needs_program = any(contestant(peer).from_program for peer in peers)
            prepared = prepare(
                Subject(model, **options), folder, bundle=None, program=needs_program
            )
            counted = {p: count_peer(guest(p, prepared, root, folder)) for p in peers}
        rows[name] = {"floor": prepared.mult_adds / 4, "ours": ours, **counted}
        row = rows[name]
        write(f"{name:10} {row['floor'] / 1e6:8.3f} {ours / 1e6:8.3f}")
        write("".join(f" {count / 1e6:12.3f}" for count in counted.values()))
        write(f" {ours / min(counted.values()):6.3f}\n")
        table.flush()
    versions = {peer: version(PEERS[peer]) for peer in peers}
    write(", ".join(f"{peer} {number}" for peer, number in versions.items()) + "\n")
    table.flush()
    if args.json:
        document = {"core": CORE, "versions": versions, "instructions": rows}
        args.json.write_text(json.dumps(document, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
