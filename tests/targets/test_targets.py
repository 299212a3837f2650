"""The devices as data: every TOML file, and what a bad one is answered with."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from tvm_mobilenet import targets
from tvm_mobilenet.errors import InputError
from tvm_mobilenet.targets import TargetSpec, load

GOOD = load("x86-64-v3").to_toml()
ARM = [name for name in targets.names() if not load(name).mtriple.startswith("x86")]
GPUS = [name for name in targets.names() if load(name).gpu]


def llvm_features(spec: TargetSpec) -> set[str]:
    from tvm.target import codegen

    return {str(name) for name in codegen.llvm_get_cpu_features(spec.host_target())}


@pytest.mark.parametrize("name", targets.names())
def test_every_device_agrees_with_llvm(name: str) -> None:
    spec = load(name)
    target = spec.host_target()
    assert (spec.name, Path(spec.source).name) == (name, f"{name}.toml")
    assert (str(target.kind), target.attrs["mcpu"]) == ("llvm", spec.mcpu)
    assert int(target.attrs["num-cores"]) == spec.cores
    features = llvm_features(spec)
    if not spec.mtriple.startswith("x86"):
        assert "neon" in features and spec.vector_bits == 128
        assert spec.vector_registers == (32 if spec.mtriple.startswith("aarch64") else 16)
        return
    wide = {"avx512f", "avx512vl", "avx512dq", "avx512bw"} <= features
    assert spec.vector_bits == (512 if wide else 256 if {"avx2", "fma"} <= features else 128)
    assert spec.vector_registers == (32 if wide else 16)
    assert spec.lanes * 32 == spec.vector_bits


@pytest.mark.parametrize("name", targets.names())
def test_caches_are_whole_and_grow_outwards(name: str) -> None:
    spec = load(name)
    sets = spec.l1d_kib * 1024 / (64 * spec.l1d_ways)
    if spec.mtriple.startswith("x86"):
        assert sets == 64  # 4 KiB a way: what a virtually indexed x86 L1 has with 4 KiB pages
    else:
        assert sets in (64, 128, 256)
    assert spec.l1d_kib < spec.l2_kib
    assert spec.l2_kib < spec.l3_kib or (spec.l3_kib == 0 and name in ARM)


@pytest.mark.parametrize("name", [name for name in ARM if name not in GPUS])
def test_arm_devices_say_what_a_tuner_and_an_emulator_need(name: str) -> None:
    spec = load(name)
    assert spec.issue_width >= 2 and spec.qemu_cpu and spec.mca_cpu
    assert spec.in_order == (spec.mcpu in ("cortex-a7", "cortex-a53", "cortex-a55"))
    assert not llvm_features(spec) & set(spec.lacks)


@pytest.mark.parametrize("name", GPUS)
def test_gpu_devices_agree_with_tvm_and_nvidia(name: str) -> None:
    spec = load(name)
    gpu, target = spec.gpu, spec.tvm_target()
    assert (spec.kind, str(target.kind), str(target.host.kind)) == ("cuda", "cuda", "llvm")
    assert target.attrs["arch"] == gpu.arch
    assert name in (f"cuda-sm{gpu.capability}", "jetson-orin")
    # From the Ampere generation on, the driver keeps 1 KiB of shared memory for itself per block.
    assert gpu.shared_kib_per_sm - gpu.shared_kib_per_block == (0 if gpu.capability == 75 else 1)
    assert gpu.threads_per_sm // gpu.blocks_per_sm in (64, 96)
    assert (gpu.tf32_fma == 0) == (gpu.capability < 80)
    assert gpu.f16_fma in (2 * gpu.tf32_fma, 512)


@pytest.mark.parametrize(
    ("name", "precision", "tflops"),
    [  # dense figures of NVIDIA's data sheets
        ("cuda-sm75", "float16", 65),
        ("cuda-sm80", "float32", 19.5),
        ("cuda-sm80", "tf32", 156),
        ("cuda-sm86", "float32", 35.6),
        ("cuda-sm89", "float16", 165.2),
        ("cuda-sm90", "float32", 67),
        ("cuda-sm120", "float16", 209.5),
        ("jetson-orin", "float32", 5.3),
    ],
)
def test_gpu_peaks_are_those_of_the_data_sheets(name, precision, tflops) -> None:
    assert load(name).gpu.peak_gflops(precision) / 1e3 == pytest.approx(tflops, rel=0.01)


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ('arch = "sm_90"', 'arch = "90"', r":23: arch: must be like sm_90, not '90'"),
        ("sms = 132", "sms = 0", r":24: sms: must be at least 1"),
        ("sms = 132", "", r": sms: this key is missing"),
        ("sms = 132", "sms = 132\nsmss = 1", r":25: smss: unknown key; did you mean sms\?"),
        ("shared_kib_per_block = 227", "shared_kib_per_block = 300", r":29: .* at most shared_kib"),
        ('kind = "cuda"', 'kind = "llvm"', r":3: kind: 'cuda' and a \[gpu\] table go together"),
    ],
)
def test_bad_gpu_table_says_file_line_and_key(tmp_path: Path, old, new, complaint) -> None:
    text = load("cuda-sm90").to_toml()
    assert old in text
    file = tmp_path / "device.toml"
    file.write_text(text.replace(old, new, 1))
    with pytest.raises(InputError, match=rf"^{file}{complaint}"):
        load(str(file))


@pytest.mark.parametrize(("name", "feature"), [("rpi4", "dotprod"), ("rpi3", "fullfp16")])
def test_a_feature_that_the_core_lacks_is_refused(name: str, feature: str, tmp_path: Path) -> None:
    file = tmp_path / "device.toml"
    text = load(name).to_toml().replace("mattr = [", f'mattr = ["+{feature}", ')
    file.write_text(text)
    with pytest.raises(InputError, match=rf"mattr: {name} lacks {feature}"):
        load(str(file))
    lacking = '"dotprod", "fullfp16", '
    assert lacking in text
    file.write_text(text.replace(lacking, ""))  # and where the file does not say so, LLVM knows
    with pytest.raises(InputError, match=rf"mattr: {load(name).mcpu} has no {feature}"):
        load(str(file)).tvm_target()


@pytest.mark.parametrize("name", targets.names())
def test_toml_text_gives_the_same_device_again(name: str, tmp_path: Path) -> None:
    file = tmp_path / "device.toml"
    file.write_text(load(name).to_toml())
    again = load(str(file))
    assert dataclasses.replace(again, source=load(name).source) == load(name)


def test_text_is_escaped(tmp_path: Path) -> None:
    odd = dataclasses.replace(load("zen4"), description='a "quoted" \\ name', mattr=("-a", "+b"))
    (tmp_path / "t.toml").write_text(odd.to_toml())
    again = load(str(tmp_path / "t.toml"))
    assert (again.description, again.mattr) == (odd.description, odd.mattr)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("x86-64-v5", "x86-64-v4"),
        ("skylake-avx521", "skylake-avx512"),
        ("ZEN4", "zen4"),
        ("nativ", "native"),
        ("qqqq", "'targets' lists"),
    ],
)
def test_unknown_name_lists_near_ones(name: str, near: str) -> None:
    with pytest.raises(InputError, match="unknown target") as caught:
        load(name)
    assert name in str(caught.value) and near in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("cores = 4", "cores = ", r":7: not valid TOML"),
        ("cores = 4", 'cores = "4"', r":7: cores: must be a whole number, not '4'"),
        ("cores = 4", "cores = true", r":7: cores: must be a whole number"),
        ("cores = 4", "cores = 4.5", r":7: cores: must be a whole number"),
        ("cores = 4", "cores = 0", r":7: cores: must be at least 1"),
        ("cores = 4", "cores = -1", r":7: cores: must be at least 1"),
        ("cores = 4", "", r": cores: this key is missing"),
        ("cores = 4", "cores = 4\ncoers = 4", r":8: coers: unknown key; did you mean cores\?"),
        ("cores = 4", "cores = 4\n[extra]\nx = 1", r":8: extra: unknown key"),
        ("mattr = []", 'mattr = ""', r":6: mattr: must be a list of strings"),
        ("mattr = []", "mattr = [1]", r":6: mattr: must be a list of strings"),
        ("mattr = []", 'mattr = ["avx2"]', r":6: mattr: 'avx2' must be \+feature or -feature"),
        ('kind = "llvm"', 'kind = "vulkan"', r":3: kind: 'vulkan' is not a kind"),
        ('name = "x86-64-v3"', 'name = "../x"', r":1: name: must be"),
        ("vector_bits = 256", "vector_bits = 200", r":8: vector_bits: must be 128, 256 or 512"),
        ("l3_kib = 4096", "l3_kib = -1", r":14: l3_kib: must be at least 0"),
        ("in_order = false", "in_order = 0", r":16: in_order: must be true or false, not 0"),
        ("affinity = []", "affinity = [4]", r":18: affinity: must name as many CPUs as .* 4"),
        ("affinity = []", 'affinity = ["4"]', r":18: affinity: must be a list of whole numbers"),
    ],
)
def test_bad_file_says_file_line_and_key(tmp_path: Path, old, new, complaint) -> None:
    assert old in GOOD
    file = tmp_path / "device.toml"
    file.write_text(GOOD.replace(old, new, 1))
    with pytest.raises(InputError, match=rf"^{file}{complaint}"):
        load(str(file))


def test_missing_unreadable_and_binary_files(tmp_path: Path) -> None:
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    for file, reason in [
        (tmp_path / "gone.toml", "No such file"),
        (tmp_path, "Is a directory"),
        (tmp_path / "binary.toml", "not UTF-8"),
    ]:
        with pytest.raises(InputError, match=reason):
            load(str(file))


def test_cpu_that_llvm_does_not_know(tmp_path: Path) -> None:
    file = tmp_path / "device.toml"
    file.write_text(GOOD.replace('mcpu = "x86-64-v3"', 'mcpu = "pentium9"'))
    with pytest.raises(InputError, match=r"mcpu: LLVM has no CPU 'pentium9'"):
        load(str(file)).tvm_target()


@pytest.mark.parametrize("name", ["arm7a", "aarch64foo", "thumbv"])
def test_an_architecture_that_would_end_llvm_is_refused(name: str) -> None:
    spec = dataclasses.replace(targets.load("rpi2"), mtriple=f"{name}-linux-gnueabihf")
    with pytest.raises(InputError, match=f"mtriple: LLVM has no architecture '{name}'"):
        spec.tvm_target()


def test_command_lists_every_device(cli) -> None:
    table = cli("targets").stdout.splitlines()
    assert [line.split()[0] for line in table[1 : 1 + len(targets.names())]] == targets.names()
    document = json.loads(cli("targets", "--json").stdout)
    assert (document["schema_version"], document["kind"]) == (1, "targets")
    assert [device["name"] for device in document["targets"]] == targets.names()


def test_command_shows_a_device(cli, tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text(cli("targets", "show", "zen5").stdout)
    assert load(str(tmp_path / "own.toml")).mcpu == "znver5"
    shown = json.loads(cli("targets", "show", tmp_path / "own.toml", "--json").stdout)
    assert shown["target"]["mcpu"] == "znver5" and shown["target"]["mattr"] == []


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(("show",), 2), (("detect", "zen4"), 2), (("show", "zen9"), 3), (("shwo",), 2)],
)
def test_command_used_wrongly(cli, arguments, code) -> None:
    result = cli("targets", *arguments)
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (code, "", 1)
