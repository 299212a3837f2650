"""Loading and running bundles."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from tvm_mobilenet.errors import InputError, UsageError
from tvm_mobilenet.parity.samples import Sample, load_samples
from tvm_mobilenet.runtime import Bundle, Tensor, host, manifest
from tvm_mobilenet.runtime.bundle import ALIGNMENT, aligned


@pytest.fixture
def bundle(built: Path) -> Bundle:
    return Bundle.load(built)


@pytest.fixture
def sample(built: Path) -> Sample:
    return load_samples(built / manifest.SAMPLES, ["picture"], ["scores"])[0]


def close(got: np.ndarray, sample: Sample) -> bool:
    return bool(np.allclose(got, sample.float64["scores"], rtol=1e-5, atol=1e-5))


def rewrite(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change a manifest and seal it again, as a forger would."""
    document = json.loads((path / manifest.NAME).read_text())
    del document["manifest_sha256"]
    change(document)
    (path / manifest.NAME).write_text(manifest.seal(document))


def test_it_tells_its_interface(bundle: Bundle, built: Path) -> None:
    assert bundle.path == built
    assert bundle.inputs == (Tensor("picture", (2, 3, 20, 20), "float32"),)
    assert bundle.outputs == (Tensor("scores", (2, 7), "float32"),)
    assert bundle.manifest["model"]["name"] == "small"
    assert "picture: float32[2, 3, 20, 20]" in repr(bundle)


def test_an_array_gives_an_array_and_a_mapping_a_mapping(bundle: Bundle, sample: Sample) -> None:
    x = sample.inputs["picture"]
    array = bundle.run(x)
    assert isinstance(array, np.ndarray)
    assert array.dtype == np.float32
    assert close(array, sample)
    named = bundle.run({"picture": x})
    assert list(named) == ["scores"]
    np.testing.assert_array_equal(named["scores"], array)


def test_anything_that_speaks_dlpack_will_do(bundle: Bundle, sample: Sample) -> None:
    assert close(bundle.run(torch.from_numpy(sample.inputs["picture"])), sample)


def test_unaligned_strided_and_read_only_inputs_are_copied(bundle: Bundle, sample: Sample) -> None:
    x = sample.inputs["picture"]
    store = np.zeros(x.nbytes + 2 * ALIGNMENT, np.uint8)
    for offset in range(0, ALIGNMENT, 4):
        start = -store.ctypes.data % ALIGNMENT + offset
        shifted = store[start : start + x.nbytes].view(np.float32).reshape(x.shape)
        shifted[...] = x
        assert close(bundle.run(shifted), sample)
    strided = np.repeat(x, 2, axis=3)[..., ::2]
    assert close(bundle.run(strided), sample)
    read_only = x.copy()
    read_only.flags.writeable = False
    assert close(bundle.run(read_only), sample)


def test_aligned_copies_only_what_it_must() -> None:
    good = aligned(np.arange(100, dtype=np.float32)[1:])
    assert good.ctypes.data % ALIGNMENT == 0
    assert aligned(good) is good
    np.testing.assert_array_equal(good, np.arange(1, 100))


def test_results_own_their_memory(bundle: Bundle, sample: Sample) -> None:
    x = sample.inputs["picture"]
    first = bundle.run(x)
    kept = first.copy()
    others = [bundle.run(x * scale) for scale in (0.0, 2.0, 3.0)]
    np.testing.assert_array_equal(first, kept)
    assert first.flags.owndata
    assert not any(np.shares_memory(first, other) for other in others)
    first[...] = 0
    np.testing.assert_array_equal(bundle.run(x), kept)
    bundle.close()
    np.testing.assert_array_equal(first, np.zeros_like(first))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (np.zeros((2, 3, 20, 21), np.float32), ["'picture'", "(2, 3, 20, 21)", "(2, 3, 20, 20)"]),
        (np.zeros((2, 3, 20, 20)), ["'picture'", "float64", ".astype('float32')"]),
        (torch.zeros(2, 3, 20, 20, requires_grad=True), ["'picture'", "CPU memory"]),
        ([1.0, 2.0], ["list", "numpy array"]),
        ({"image": 1}, ["'picture' is missing"]),
        ({"picture": 1, "other": 2}, ["'other' is not one of"]),
    ],
)
def test_bad_inputs_are_refused_by_name(bundle: Bundle, value: Any, words: list[str]) -> None:
    with pytest.raises(InputError) as error:
        bundle.run(value)
    assert all(word in str(error.value) for word in words)
    assert "\n" not in str(error.value)


def test_threads_share_a_bundle(bundle: Bundle, sample: Sample) -> None:
    x = sample.inputs["picture"]
    expected = [bundle.run(x * scale) for scale in range(4)]
    wrong: list[int] = []

    def work(scale: int) -> None:
        for _ in range(50):
            if not np.array_equal(bundle.run(x * scale), expected[scale]):
                wrong.append(scale)

    workers = [threading.Thread(target=work, args=(scale,)) for scale in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_a_closed_bundle_does_not_run(built: Path, sample: Sample) -> None:
    with Bundle.load(built) as bundle:
        assert close(bundle.run(sample.inputs["picture"]), sample)
    with pytest.raises(UsageError, match="closed"):
        bundle.run(sample.inputs["picture"])


def test_two_of_one_library_do_not_disturb_each_other(built: Path, sample: Sample) -> None:
    x = sample.inputs["picture"]
    first, second = Bundle.load(built), Bundle.load(built)
    assert close(second.run(x), sample)
    second.close()
    assert close(first.run(x), sample)


def test_weights_are_in_memory_once(tmp_path: Path) -> None:
    """Pages of the library's file that were copied into tensors are given back."""
    from tvm_mobilenet import deploy

    text = '<ir_version: 10, opset_import: ["" : 18]> dense (float[1,512] x) => (float[1,512] y) '
    model = onnx.parser.parse_model(text + "{ y = MatMul(x, w) }")
    weights = np.random.default_rng(0).standard_normal((512, 512)).astype("float32")
    model.graph.initializer.append(onnx.numpy_helper.from_array(weights, "w"))
    onnx.save(model, tmp_path / "dense.onnx")
    built = deploy.build(tmp_path / "dense.onnx", output=tmp_path / "bundle", threads=1).path
    with Bundle.load(built) as bundle:
        x = np.ones((1, 512), "float32")
        np.testing.assert_allclose(bundle.run(x), x @ weights, rtol=1e-4, atol=1e-4)
        resident, mine = 0, False
        for line in Path("/proc/self/smaps").read_text().splitlines():
            fields = line.split(maxsplit=5)
            if "-" in fields[0]:
                mine = fields[-1] == str(built / "model.so")
            elif mine and fields[0] == "Rss:":
                resident += int(fields[1])
    assert resident < weights.nbytes / 1024 / 2


def test_code_that_replaced_loaded_code_is_the_code_that_runs(
    bundle_path: Path, model_path: Path, sample: Sample
) -> None:
    import onnx
    from onnx import numpy_helper

    from tvm_mobilenet import deploy

    old = Bundle.load(bundle_path)
    model = onnx.load(model_path)
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == "b1")
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + 1, "b1"))
    other = bundle_path.with_name("other.onnx")
    onnx.save(model, other)
    deploy.build(other, output=bundle_path)
    x = sample.inputs["picture"]
    np.testing.assert_allclose(Bundle.load(bundle_path).run(x), old.run(x) + 1, rtol=1e-5)


def test_number_of_threads(built: Path) -> None:
    import os

    usable = len(os.sched_getaffinity(0))
    assert Bundle.load(built, threads=1).threads == 1
    assert Bundle.load(built, threads=usable).threads == usable
    for threads in (0, usable + 1):
        with pytest.raises(InputError, match=f"from 1 to {usable}"):
            Bundle.load(built, threads=threads)


def test_the_bundles_own_number_of_threads_is_cut_to_what_there_is(bundle_path: Path) -> None:
    rewrite(bundle_path, lambda document: document.update(threads=1))
    assert Bundle.load(bundle_path).threads == 1
    rewrite(bundle_path, lambda document: document.update(threads=10_000))
    assert 1 <= Bundle.load(bundle_path).threads < 10_000


@pytest.mark.parametrize(
    "name",
    [
        "model.so",
        "samples.npz",
        "manifest.json",
        "runner/main.cc",
        "runner/npz.h",
        "runner/CMakeLists.txt",
    ],
)
def test_a_changed_byte_is_found(bundle_path: Path, name: str) -> None:
    path = bundle_path / name
    content = bytearray(path.read_bytes())
    # Within a digit of the manifest: still valid JSON.
    place = content.rindex(b'"size": ') + 8 if name == manifest.NAME else len(content) // 2
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"{name}: differs from what was built"):
        Bundle.load(bundle_path)


@pytest.mark.parametrize("name", ["model.so", "samples.npz", "runner/main.cc"])
def test_a_missing_file_is_found(bundle_path: Path, name: str) -> None:
    (bundle_path / name).unlink()
    with pytest.raises(InputError, match=f"{name}: missing"):
        Bundle.load(bundle_path)


def test_hashes_are_left_out_on_request_but_sizes_are_not(bundle_path: Path) -> None:
    source = bundle_path / "runner/main.cc"
    source.write_bytes(b"/" + source.read_bytes()[1:-1] + b"/")
    Bundle.load(bundle_path, verify=False).close()
    source.write_bytes(b"")
    with pytest.raises(InputError, match="differs"):
        Bundle.load(bundle_path, verify=False)


@pytest.mark.parametrize(
    "name",
    ["/etc/hostname", "../outside", "runner/../../outside", "a//b", "./a", "", "a\\b", "c:x"],
)
def test_names_that_lead_out_of_the_bundle_are_refused(bundle_path: Path, name: str) -> None:
    entry = {"sha256": "0" * 64, "size": 0}
    rewrite(bundle_path, lambda document: document["files"].update({name: entry}))
    with pytest.raises(InputError, match="leads out of the bundle"):
        Bundle.load(bundle_path)


def test_links_are_refused(bundle_path: Path, tmp_path: Path) -> None:
    outside = tmp_path / "elsewhere.so"
    (bundle_path / "model.so").rename(outside)
    (bundle_path / "model.so").symlink_to(outside)
    with pytest.raises(InputError, match=r"model\.so: is a link"):
        Bundle.load(bundle_path)


def test_linked_directories_are_refused(bundle_path: Path, tmp_path: Path) -> None:
    (bundle_path / "runner").rename(tmp_path / "elsewhere")
    (bundle_path / "runner").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="runner: is a link"):
        Bundle.load(bundle_path)


def test_a_manifest_without_the_library_is_refused(bundle_path: Path) -> None:
    rewrite(bundle_path, lambda document: document["files"].pop("model.so"))
    with pytest.raises(InputError, match=r"does not list model\.so"):
        Bundle.load(bundle_path)


@pytest.mark.parametrize("key", ["inputs", "outputs", "threads", "target", "files"])
def test_an_incomplete_manifest_is_refused(bundle_path: Path, key: str) -> None:
    rewrite(bundle_path, lambda document: document.pop(key))
    with pytest.raises(InputError, match=f"not a valid manifest.*{key}"):
        Bundle.load(bundle_path)


def test_another_schema_version_is_refused(bundle_path: Path) -> None:
    for version in (0, 4, None, "2", True):
        rewrite(bundle_path, lambda document, new=version: document.update(schema_version=new))
        with pytest.raises(InputError, match=f"schema version {version!r}, this release reads 1"):
            Bundle.load(bundle_path)


def test_a_bundle_of_the_first_schema_loads(bundle_path: Path, sample: Sample) -> None:
    def first_schema(document: dict[str, Any]) -> None:
        document["schema_version"] = 1
        del document["batches"], document["entries"]

    rewrite(bundle_path, first_schema)
    with Bundle.load(bundle_path) as bundle:
        assert close(bundle.run(sample.inputs["picture"]), sample)


def test_a_bundle_of_the_second_schema_runs_other_batches_in_parts(
    bundle_path: Path, sample: Sample
) -> None:
    def second_schema(document: dict[str, Any]) -> None:
        document.update(schema_version=2, batches=[4])
        del document["entries"]

    rewrite(bundle_path, second_schema)
    double = np.concatenate([sample.inputs["picture"]] * 2)
    with Bundle.load(bundle_path) as bundle:
        assert bundle.batches == (2,)
        for half in np.split(bundle.run(double), 2):
            assert close(half, sample)
    for wrong in ({"batches": [0]}, {"entries": [{"name": "main", "batch": -4}]}):
        rewrite(bundle_path, lambda document, new=wrong: document.update(schema_version=3, **new))
        with pytest.raises(InputError, match="not a valid manifest"):
            Bundle.load(bundle_path)


def test_a_manifest_that_an_older_release_wrote_is_read(tmp_path: Path) -> None:
    (tmp_path / manifest.NAME).write_bytes(Path(__file__).with_name("schema_1.json").read_bytes())
    read = manifest.read(tmp_path)
    assert read.inputs == (Tensor("picture", (1, 3, 16, 16), "float32"),)
    assert read.batches == ()
    assert read.files[manifest.LIBRARY].size > 0


def test_what_is_no_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such bundle"):
        Bundle.load(tmp_path / "none")
    with pytest.raises(InputError, match=r"has no manifest\.json"):
        Bundle.load(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        Bundle.load(tmp_path)
    (tmp_path / "manifest.json").write_text('{"name": "web app"}')
    with pytest.raises(InputError, match="not the manifest of"):
        Bundle.load(tmp_path)
    with pytest.raises(InputError, match="not a directory"):
        Bundle.load(tmp_path / "manifest.json")


def test_a_library_that_is_none_is_refused(bundle_path: Path) -> None:
    (bundle_path / "model.so").write_bytes(b"no library")
    entry = {"sha256": manifest.file_digest(bundle_path / "model.so"), "size": 10}
    rewrite(bundle_path, lambda document: document["files"].update({"model.so": entry}))
    with pytest.raises(InputError, match=r"model\.so: TVM's runtime cannot load it") as error:
        Bundle.load(bundle_path)
    assert "\n" not in str(error.value)


def test_code_for_another_machine_is_refused(bundle_path: Path) -> None:
    rewrite(bundle_path, lambda document: document["target"].update(architecture="riscv64"))
    with pytest.raises(InputError, match="built for native, but it is riscv64 code"):
        Bundle.load(bundle_path)
    rewrite(
        bundle_path,
        lambda document: document["target"].update(
            architecture=host.architecture(), cpu_features=["avx2048f"]
        ),
    )
    if host.cpu_features() is not None:
        with pytest.raises(InputError, match="this CPU lacks avx2048f"):
            Bundle.load(bundle_path)


RUN = """
import sys
{first}
from tvm_mobilenet.runtime import Bundle
bundle = Bundle.load({path!r})
import numpy as np
x = np.ones((2, 3, 20, 20), np.float32)
before = bundle.run(x)
heavy = sorted({{"tvm", "torch", "onnx", "PIL"}} & set(sys.modules))
{then}
assert np.array_equal(bundle.run(x), before)
print(*heavy)
"""
TVM_RUNS_TOO = """
import tvm
from tvm import relax
module = relax.VirtualMachine(tvm.runtime.load_module({path!r} + "/model.so"), tvm.cpu())
result = module["main"](tvm.runtime.tensor(x)).numpy()
assert np.array_equal(result, before)
import torch
assert np.array_equal(bundle.run(torch.from_numpy(x)), before)
"""


@pytest.mark.parametrize(
    ("first", "then", "loaded"),
    [
        ("", "", ""),
        ("", TVM_RUNS_TOO, ""),
        ("import tvm", TVM_RUNS_TOO, "torch tvm"),
    ],
    ids=["alone", "tvm_after", "tvm_before"],
)
def test_runtime_needs_no_compiler_and_bears_one(
    built: Path, first: str, then: str, loaded: str
) -> None:
    path = str(built)
    code = RUN.format(first=first, then=then.format(path=path), path=path)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == loaded


def test_no_thread_of_the_caller_is_bound_to_a_core(built: Path) -> None:
    code = (
        "import os, numpy as np\n"
        "from tvm_mobilenet.runtime import Bundle\n"
        "before = os.sched_getaffinity(0)\n"
        f"bundle = Bundle.load({str(built)!r})\n"
        "bundle.run(np.ones((2, 3, 20, 20), np.float32))\n"
        "assert all(os.sched_getaffinity(int(t)) == before for t in os.listdir('/proc/self/task'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_missing_runtime_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from tvm_mobilenet.errors import MissingToolError
    from tvm_mobilenet.runtime import library

    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("TVM_LIBRARY_PATH", "/nowhere")
    with pytest.raises(MissingToolError, match="pip install 'apache-tvm"):
        library.find_runtime_library()


def test_a_pool_that_tvm_started_too_small_is_told(built: Path) -> None:
    import os

    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("hardware: one CPU only")
    code = (
        "import os, numpy as np\n"
        "os.environ.update(TVM_NUM_THREADS='1', TVM_BIND_THREADS='0')\n"
        "from tvm_mobilenet.errors import TvmMobilenetError\n"
        "from tvm_mobilenet.runtime import Bundle, library\n"
        "library.tvm_ffi().get_global_func('runtime.NumThreads')()\n"
        "x = np.ones((2, 3, 20, 20), np.float32)\n"
        f"Bundle.load({str(built)!r}).run(x)\n"
        f"bundle = Bundle.load({str(built)!r}, threads=2)\n"
        "for attempt in range(2):\n"
        "    try:\n"
        "        bundle.run(x)\n"
        "    except TvmMobilenetError as error:\n"
        "        assert 'TVM_NUM_THREADS=2' in str(error)\n"
        "    else:\n"
        "        raise SystemExit('ran on one thread without a word')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_only_cores_of_the_targets_kind_are_used() -> None:
    """Affinity belongs to a thread: it goes with this one."""
    from concurrent.futures import ThreadPoolExecutor

    from tvm_mobilenet.runtime import library

    def bound(*wanted: int) -> set[int]:
        library.stay_on(wanted)
        return library.usable_cpus()

    before = library.usable_cpus()
    first = min(before)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(bound, 4096).result() == before  # none of them is here
        assert pool.submit(bound, first, 4096).result() == {first}
        assert pool.submit(bound).result() == {first}
    assert library.usable_cpus() == before
