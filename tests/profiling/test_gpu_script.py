"""Parts of benchmarks/gpu.py: what it carries and how, processes that break, the page's goals."""

from __future__ import annotations

import json
import os
import random
import signal
import struct
import sys
import time
from pathlib import Path
from typing import Any

import pytest

SCRIPTS = Path(__file__).parents[2] / "benchmarks"
DISTANCES = (
    b"\xe8",
    b"\xe9",
    b"\x0f\x84",
    b"\xff\x15",
    b"\x8d\x05",
    b"\x48\x89\x0d",
    b"\x0f\x10\x05",
)


@pytest.fixture(autouse=True)
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))


def elf(code: bytes, before: int = 64) -> bytes:
    """A file with one segment that can be run, and as much again behind it."""
    start = 64 + 56 + before
    header = b"\x7fELF\x02".ljust(32, b"\0") + struct.pack("<Q14xHH", 64, 56, 1)
    segment = struct.pack("<II6Q", 1, 5, start, start, start, len(code), len(code), 4096)
    return (header.ljust(64, b"\0") + segment).ljust(start, b"\1") + code + code


@pytest.mark.parametrize("seed", range(20))
def test_machine_code_is_put_together_to_the_byte(seed: int, monkeypatch) -> None:
    import gpu_machine_code

    monkeypatch.setattr(gpu_machine_code, "_BLOCK", 257)  # many ends of blocks, in odd places
    choice = random.Random(seed)
    code = b"".join(
        choice.choice((*DISTANCES, choice.randbytes(3))) + choice.choice((b"", choice.randbytes(4)))
        if choice.random() < 0.7
        else choice.choice(DISTANCES) + struct.pack("<i", choice.randrange(-9000, 9000))
        for _ in range(choice.randrange(1000))
    )
    for content in (elf(code), code, elf(b""), b"", elf(code)[:-3]):
        streams = gpu_machine_code.split(content)
        assert b"".join(gpu_machine_code.join(streams)) == content
    if len(code) > 500:
        streams = gpu_machine_code.split(elf(code))
        assert all(streams[kind] for kind in gpu_machine_code.KINDS)


def test_equal_targets_become_equal_bytes() -> None:
    import gpu_machine_code

    here = 64 + 56 + 64
    calls = b"".join(b"\xe8" + struct.pack("<i", here - (here + 5 * (i + 1))) for i in range(9))
    streams = gpu_machine_code.split(elf(calls))
    assert streams["call"] == 9 * struct.pack(">i", here)


def test_large_libraries_are_carried_in_parts_and_found_whole(monkeypatch, tmp_path: Path) -> None:
    import tarfile

    import gpu_carried

    small = [{"id": gpu_carried.lzma.FILTER_LZMA2, "preset": 0}]
    monkeypatch.setattr(gpu_carried, "_TEXT", small)
    monkeypatch.setattr(gpu_carried, "_PLACES", small)
    monkeypatch.setattr(gpu_carried, "LARGE", 1000)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("PYTHONPATH", "elsewhere")
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("CC", "CXX"):
        monkeypatch.setenv(name, "")  # and not delenv, which takes back nothing where there is none
    library = elf(random.Random(0).randbytes(4000))
    file = tmp_path / "gpu.tar.xz"
    with gpu_carried._Archive(file) as archive:
        archive.add("site/package/library.so", library)
        archive.add("site/package/__init__.py", b"it = 'carried'")
        archive.add("linker/tcc", b"")
    with tarfile.open(file) as packed:
        assert "site/package/library.so" not in packed.getnames()
        assert "site/package/library.so.parts/call" in packed.getnames()
    for _ in range(2):  # a second time it is there already
        assert gpu_carried.use(file)
    site = tmp_path / "gpu.tar.xz.unpacked" / "site"
    assert (site / "package" / "library.so").read_bytes() == library
    assert not list(site.rglob("*.parts"))
    assert sys.path[0] == str(site)
    assert os.environ["PYTHONPATH"] == f"{site}{os.pathsep}elsewhere"
    linker = Path(os.environ["CXX"])
    assert os.access(linker, os.X_OK) and "-nostdlib" in linker.read_text()


def test_a_step_that_breaks_or_hangs_its_process_is_told_and_others_go_on(tmp_path: Path) -> None:
    from gpu_results import GPU_BROKE, Results, in_processes, now

    def die() -> dict[str, Any]:
        os.kill(os.getpid(), signal.SIGKILL)
        return {}

    def hang() -> dict[str, Any]:
        time.sleep(600)
        return {}

    def lose_the_gpu() -> dict[str, Any]:
        os._exit(GPU_BROKE)

    done = tmp_path / "done"
    done.mkdir()
    since = now()

    def work() -> int:
        results = Results(done, since)
        steps = {"dies": die, "hangs": hang, "breaks": lose_the_gpu, "works": lambda: {"it": "is"}}
        for name, step in steps.items():
            results.do(name, step)
        return 1

    assert in_processes(work, done, limit=None, step_limit=1.0) == 1
    steps = json.loads((done / "gpu.json").read_text())["steps"]
    assert {name: entry["state"] for name, entry in steps.items()} == {
        "dies": "failed",
        "hangs": "failed",
        "breaks": "failed",
        "works": "done",
    }
    assert steps["dies"]["error"] == "the process ended with signal SIGKILL"
    assert steps["hangs"]["error"] == "it was ended after 1 s, its limit"
    assert "- dies: the process ended with signal SIGKILL" in (done / "gpu.md").read_text()


def test_a_step_cut_by_the_limit_is_done_the_next_time(tmp_path: Path, capfd) -> None:
    from gpu_results import Results, in_processes

    def work() -> int:
        results = Results(tmp_path)
        results.do("first", dict)
        results.do("second", lambda: time.sleep(600) or {})
        return 0

    assert in_processes(work, tmp_path, limit=1.0, step_limit=60.0) == 1
    assert list(json.loads((tmp_path / "gpu.json").read_text())["steps"]) == ["first"]
    assert "the limit is reached" in capfd.readouterr().err


def cell(ours: float, share: float | None, **others: float) -> dict[str, Any]:
    times = {"ours": ours, **others}
    timings = {name.replace("_", "."): {"p50_us": time} for name, time in times.items()}
    return {
        **{"state": "done", "date": "2026-01-02T03:04:05", "launches": 17, "kernels": []},
        **{"back_to_back": timings, "single": timings, "speed_up_over_best_pytorch": share},
    }


def test_the_page_tells_which_goals_are_reached_and_what_misses_by_how_much() -> None:
    from gpu_report import markdown

    steps = {
        "parity V1 1.0/224 batch 32 float16": {"state": "done", "date": "2026"},
        "time V1 1.0/224 batch 1 float32": cell(130.0, 1.6, eager=208.0),
        "compare V1 1.0/224 batch 1 float32": cell(125.0, 1.4, torch_compile=175.0),
        "compare V1 1.0/224 batch 32 float16": cell(300.0, 0.9, torch_compile=270.0),
        "compare tuned V1 1.0/224 batch 1 float32": cell(80.0, 2.0, torch_compile=160.0),
        "time V1 1.0/224 batch 32 tf32": cell(600.0, 1.2, eager=720.0),
        "compare tuned V2 batch 1 tf32": {"state": "done", "date": "2026", "same": "as it was"},
    }
    page = markdown({"device": "NVIDIA H200", "steps": steps})
    assert "goals for" not in page
    for line in (
        "| V1 1.0/224 batch 1 float32: at most 100 us | 80.0 us | reached (+20.0 us) |",
        "| V1 1.0/224 batch 1 float16: at most 70 us | - | not measured |",
        "| V1 1.0/224 batch 1 float32: 1.5 times the best of PyTorch | 2.00 | reached (+0.50) |",
        "| V1 1.0/224 batch 32 float16: 1.0 times the best of PyTorch | 0.90 "
        "| **missed** (-0.10, 90% of it) |",
        "| V1 1.0/224 batch 32 tf32: 1.0 times the best of PyTorch | 1.20 "
        "| reached (+0.20), without torch.compile |",
        "| V1 1.0/224 batch 32 float16 | shipped | ",
        "| V1 1.0/224 batch 32 tf32 (**not proven**) | shipped | ",
        "| V1 1.0/224 batch 1 float32 | tuned | 80.0 (80.0) | 160.0 (160.0) | - | 2.00 | 17 |",
    ):
        assert line in page, page
    assert "goals for an H200, which this GPU is not" in markdown({"device": "T4", "steps": steps})
