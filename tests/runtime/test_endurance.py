"""The runtime over many loads and threads, with the least installed, and what it copies."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tvm_mobilenet.runtime import Bundle
from tvm_mobilenet.runtime.bundle import ALIGNMENT

BEGIN = """
import os, sys, threading
import numpy as np
from tvm_mobilenet.runtime import Bundle

path = sys.argv[1]
x = np.random.default_rng(0).standard_normal((2, 3, 20, 20)).astype("float32")

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

def open_files():
    return len(os.listdir("/proc/self/fd"))

def tasks():
    return len(os.listdir("/proc/self/task"))

def together(works):
    wrong = []
    threads = [threading.Thread(target=work, args=(wrong,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong, wrong

with Bundle.load(path, threads=1) as bundle:
    expected = [bundle.run(x * scale) for scale in range(4)]
"""

CYCLES = """
def cycle():
    with Bundle.load(path) as bundle:
        assert np.array_equal(bundle.run(x), expected[1])

for _ in range(100):
    cycle()
before = resident(), open_files(), tasks()
for _ in range(900):
    cycle()
assert resident() - before[0] < 2 * 2**20, (before, resident())
assert (open_files(), tasks()) == before[1:]
"""

THREADS = """
shared = Bundle.load(path, threads=THREADS)
affinity = os.sched_getaffinity(0)

def one_module(scale):
    def work(wrong):
        for _ in range(100):
            if not np.array_equal(shared.run(x * scale), expected[scale]):
                wrong.append(scale)
    return work

def own_module(scale):
    def work(wrong):
        with Bundle.load(path, threads=THREADS) as own:
            for _ in range(100):
                if not np.array_equal(own.run(x * scale), expected[scale]):
                    wrong.append(scale)
        if os.sched_getaffinity(0) != affinity:
            wrong.append("bound to a core")
    return work

together([make(scale) for scale in range(4) for make in (one_module, own_module)])
"""

COMING_AND_GOING = """
def cycle(wrong):
    with Bundle.load(path, threads=1) as bundle:
        if not np.array_equal(bundle.run(x), expected[1]):
            wrong.append("wrong")

for _ in range(20):
    together([cycle] * 2)
before = resident()
for _ in range(100):
    together([cycle] * 2)
assert resident() - before < 2 * 2**20
assert tasks() < 10, tasks()
"""


def run(code: str, built: Path, before: str = "") -> None:
    done = subprocess.run(
        [sys.executable, "-c", before + BEGIN + code, str(built)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_thousand_loads_leak_nothing(built: Path) -> None:
    run(CYCLES, built)


@pytest.mark.slow
def test_threads_that_come_and_go_leak_nothing(built: Path) -> None:
    run(COMING_AND_GOING, built)


@pytest.mark.slow
@pytest.mark.parametrize("threads", ["1", "None"])
def test_many_threads_on_one_module_and_on_their_own(built: Path, threads: str) -> None:
    run(THREADS.replace("THREADS", threads), built)


LEAST = """
import sys

ALLOWED = {"tvm_mobilenet", "numpy", "tvm_ffi", "typing_extensions", "tvm"}  # tvm: only looked for

class Refuse:
    def find_spec(self, name, path=None, target=None):
        top = name.split(".")[0]
        if top not in ALLOWED | sys.stdlib_module_names:
            raise ModuleNotFoundError(f"not in the minimal set: {name}", name=name)

sys.meta_path.insert(0, Refuse())
"""


def test_the_minimal_set_is_enough(built: Path) -> None:
    """numpy, tvm_ffi with what it needs itself, and the library in tvm's package."""
    run("assert not {'torch', 'onnx', 'tvm'} & set(sys.modules)", built, before=LEAST)


@pytest.fixture
def bundle(built: Path) -> Bundle:
    return Bundle.load(built)


def test_inputs_are_read_where_they_are(bundle: Bundle) -> None:
    """What the compiled code is handed has the address of what was passed."""
    (tensor,) = bundle.inputs
    own = bundle.new_input()
    own += 1
    foreign = torch.ones(2, 3, 20, 20)
    assert foreign.data_ptr() % ALIGNMENT == 0
    handed = [bundle.program.checked({"picture": x}, tensor) for x in (own, foreign)]
    assert [array.ctypes.data for array in handed] == [own.ctypes.data, foreign.data_ptr()]
    np.testing.assert_array_equal(bundle.run(own), bundle.run(foreign))
    shifted = np.ones(2 * 3 * 20 * 20 + 1, np.float32)[1:].reshape(2, 3, 20, 20)
    copied = shifted if shifted.ctypes.data % ALIGNMENT else own[:, ::-1]
    assert bundle.program.checked({"picture": copied}, tensor).ctypes.data != copied.ctypes.data


def test_results_stay_where_they_are_on_request(bundle: Bundle) -> None:
    x = bundle.new_input("picture")
    x += 1
    copied = bundle.run(x)
    results = [bundle.run(x * scale, copy=False) for scale in (1, 2, 3)]
    assert copied.flags.owndata and not results[0].flags.owndata
    kept = results[0].copy()
    taken = torch.from_dlpack(results[0])
    assert taken.data_ptr() == results[0].ctypes.data
    assert len({result.ctypes.data for result in results}) == 3  # a result's memory is not reused
    bundle.close()
    np.testing.assert_array_equal(taken.numpy(), kept)
    np.testing.assert_array_equal(kept, copied)


def test_an_unknown_input_is_refused(bundle: Bundle) -> None:
    from tvm_mobilenet.errors import InputError

    with pytest.raises(InputError, match="the model has inputs picture; name one of them"):
        bundle.new_input("image")
