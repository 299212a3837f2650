"""The HTML page: its parts, and how it behaves in a real browser."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import gzip
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tvm_mobilenet.cli import main
from tvm_mobilenet.errors import InputError, MissingToolError
from tvm_mobilenet.profiling import html, kernels
from tvm_mobilenet.profiling.counters import Counted
from tvm_mobilenet.profiling.instructions import InstructionProfile, OperatorInstructions
from tvm_mobilenet.profiling.layer_parity import read_parity
from tvm_mobilenet.profiling.limits import LevelLimit, Limits
from tvm_mobilenet.profiling.operators import sample_operators
from tvm_mobilenet.profiling.profile import Profile, summarise
from tvm_mobilenet.profiling.report import Network, Report
from tvm_mobilenet.profiling.separable import Block
from tvm_mobilenet.runtime import manifest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

LEVELS = (LevelLimit("L1", 32, 200.0), LevelLimit("L2", 1024, 100.0), LevelLimit("memory", 0, 10.0))
LIMITS = Limits("A Processor", 512, 1, 200.0, LEVELS, "2026-01-01", quiet=True)
PATIENCE_MS = 240_000  # a busy machine is no failure
HOSTILE = "</script><script>throw 1</script>"  # a node may be called anything


@pytest.fixture(scope="module")
def profiled(small_bundle: Path) -> Profile:
    document = dict(manifest.read(small_bundle).document)
    document["operators"] = [dict(entry) for entry in document["operators"]]
    samples = sample_operators(small_bundle, threads=1, runs=8)
    samples.operators[3].description["onnx_nodes"].append(HOSTILE)
    counts = tuple({"cycles": 100.0 * i, "instructions": 250.0 * i} for i in range(1, 6))
    samples = dataclasses.replace(samples, counted=Counted(counts, {"L2 misses": "not there"}))
    return summarise(
        samples, document, bundle=str(small_bundle), cpu="A Processor", limits=LIMITS, notes=["Hm"]
    )


@pytest.fixture(scope="module")
def parity_path(
    small_bundle: Path, model_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """What `validate --per-layer --json` prints of the bundle."""
    path = tmp_path_factory.mktemp("parity") / "parity.json"
    with path.open("w") as file, contextlib.redirect_stdout(file):
        arguments = ("validate", small_bundle, "--model", model_path, "--per-layer", "--json")
        assert main(list(map(str, arguments))) == 0
    return path


@pytest.fixture(scope="module")
def page_path(
    profiled: Profile, parity_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    path = tmp_path_factory.mktemp("page") / "profile.html"
    symbols = [operator.symbol for operator in profiled.operators]
    html.write_html(profiled, path, parity=read_parity(parity_path, symbols))
    return path


def test_parity_is_read_layer_by_layer(parity_path: Path, profiled: Profile) -> None:
    symbols = [operator.symbol for operator in profiled.operators]
    found = read_parity(parity_path, symbols)
    assert found.whole["state"] == "passed" and "layers" not in found.whole
    assert [row["symbol"] for row in found.layers] == symbols
    for row in found.layers:
        assert row["verdict"] == "passed" and row["propagated_snr_db"] > 100
        assert 0 < row["isolated_relative_l2"] < 1e-5
    with pytest.raises(InputError, match="of another bundle"):
        read_parity(parity_path, symbols[1:])


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda text: text[:40], "is no output of 'validate --json'"),
        (lambda text: text.replace('"validate"', '"profile"'), "kind is 'profile'"),
        (lambda text: text.replace('"isolated"', '"other"'), "KeyError|'isolated'"),
    ],
)
def test_another_file_is_no_parity(
    parity_path: Path, tmp_path: Path, spoil: Callable[[str], str], problem: str
) -> None:
    other = tmp_path / "other.json"
    other.write_text(spoil(parity_path.read_text()))
    with pytest.raises(InputError, match=problem):
        read_parity(other, [])
    with pytest.raises(InputError, match="cannot be read"):
        read_parity(tmp_path / "nowhere.json", [])


def test_a_verdict_at_fault_shows(parity_path: Path, tmp_path: Path, profiled: Profile) -> None:
    document = json.loads(parity_path.read_text())
    operators = document["parity"]["layers"]["operators"]
    operators[1]["isolated"]["passed"] = operators[2]["propagated"]["passed"] = False
    operators[3]["isolated"] = operators[3]["propagated"] = None
    path = tmp_path / "wrong.json"
    path.write_text(json.dumps(document))
    rows = read_parity(path, [operator.symbol for operator in profiled.operators]).layers
    assert [row["verdict"] for row in rows] == ["passed", "AT FAULT", "FAILED", "–", "passed"]
    assert rows[3]["propagated_snr_db"] is None


def _unpacked(text: str, name: str) -> str:
    found = re.search(rf'<script type="text/plain" id="{name}">([^<]*)</script>', text)
    assert found
    return gzip.decompress(base64.b64decode(found[1])).decode()


def test_the_page_holds_everything_itself(page_path: Path) -> None:
    text = page_path.read_text("utf-8")
    assert not re.search(r"{{\w+}}", text)
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=[\"']?(https?:)?//", text)
    assert HOSTILE not in text
    data = re.search(r'id="data">(.*?)</script>', text, re.S)
    assert data
    layers = json.loads(data[1])["layers"]
    assert len(layers) == 5 and any(HOSTILE in layer["onnx_nodes"] for layer in layers)
    assert "plotly.js" in _unpacked(text, "plotly-code")[:200]


@pytest.mark.needs_tool("objdump", "binutils")
def test_the_page_shows_source_and_machine_code_of_every_kernel(page_path: Path) -> None:
    found = json.loads(_unpacked(page_path.read_text("utf-8"), "kernels-data"))
    assert set(found) == {"stem_0", "depthwise_0", "pointwise_0", "pool_0", "dense_0"}
    for symbol, kernel in found.items():
        assert "@T.prim_func" in kernel["source"] and "ret" in kernel["assembly"], symbol


def test_without_a_disassembler_the_page_says_why(
    small_bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(small_bundle, tmp_path / "old"))
    (copy / manifest.KERNELS).unlink()
    monkeypatch.setattr(kernels.shutil, "which", lambda tool: None)
    found = kernels.read_kernels(copy, ["stem_0"])["stem_0"]
    assert found.source is None and "older release" in found.source_missing
    assert found.assembly is None and "apt-get install binutils" in found.assembly_missing


def test_without_the_plotting_library_the_command_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(html.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingToolError, match=r"pip install .*\[report\]"):
        html.check()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=shutil.which("chromium"),
            timeout=PATIENCE_MS,
            args=["--no-sandbox"],  # its sandbox refuses root, whom CI runs as
        )
        yield chromium
        chromium.close()


WIDTHS = {"phone": (390, 844), "desktop": (1280, 900)}


@pytest.fixture(params=list(WIDTHS))
def opened(
    request: pytest.FixtureRequest, browser: Browser, page_path: Path
) -> Iterator[tuple[Page, list[str]]]:
    """The page drawn at one width, and what went wrong: console errors and requests outside."""
    width, height = WIDTHS[request.param]
    context = browser.new_context(viewport={"width": width, "height": height}, offline=True)
    page = context.new_page()
    page.set_default_timeout(PATIENCE_MS)
    wrong: list[str] = []
    page.on("console", lambda m: wrong.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda r: wrong.append(r.url) if r.url.startswith("http") else None)
    page.goto(page_path.as_uri())
    page.wait_for_selector("body[data-ready=true]")
    yield page, wrong
    context.close()


def _column(page: Page, name: str) -> list[str]:
    return [text.strip() for text in page.locator(f"#operators td.{name}").all_text_contents()]


@pytest.mark.slow
@pytest.mark.needs_tool("chromium", "chromium")
def test_the_page_in_a_browser(opened: tuple[Page, list[str]], profiled: Profile) -> None:
    page, wrong = opened
    width: Any = page.viewport_size

    # it draws everything, within the window
    assert page.locator("#cards .card").count() == 6
    assert page.locator("#findings li").count() == 6
    assert page.locator("#kinds .bars path").count() == 3 * 5
    assert page.locator("#bars .bars path").count() == 2 * 5
    assert page.locator("#roofline .scatterlayer .points path").count() == 4, "the pool has no FLOP"
    assert page.evaluate("document.documentElement.scrollWidth") <= width["width"]
    for plot in ("kinds", "bars", "roofline"):
        box = page.locator(f"#{plot} .main-svg").first.bounding_box()
        assert box and box["x"] >= 0 and box["x"] + box["width"] <= width["width"] + 1

    # the table sorts, both ways, and filters
    slowest_first = [row["name"] for row in profiled.rows()]
    assert _column(page, "name") == slowest_first
    page.locator("#operators").get_by_role("button", name="Layer").click()
    assert _column(page, "name") == sorted(slowest_first)
    page.locator("#operators").get_by_role("button", name="Layer").click()
    assert _column(page, "name") == sorted(slowest_first, reverse=True)
    page.fill("#filter", "point")
    assert _column(page, "kind") == ["pointwise"]
    assert "1 of 5 operators" in page.inner_text("#count")
    page.fill("#filter", "")
    page.select_option("#kind", "pool")
    assert _column(page, "kind") == ["pool"]

    # counters and parity are there
    page.select_option("#kind", "")
    assert _column(page, "ipc") == ["2.50"] * 5 and _column(page, "l2_mpki") == []
    assert "L2 misses" in page.inner_text("#limits")
    assert page.locator("#growth .scatterlayer .trace").count() == 3
    parity = page.locator("#parity-layers tbody tr")
    assert parity.count() == 5 and "passed" in parity.first.inner_text()
    page.select_option("#kind", "pool")

    # a click shows the kernel
    page.locator("#operators tbody tr").click()
    page.wait_for_function("document.getElementById('code').textContent.includes('@T.prim_func')")
    assert "pool_0" in page.inner_text("#details-title")
    assert HOSTILE in page.inner_text("#details-facts")
    page.get_by_role("tab", name="Machine code").click()
    assert "ret" in page.inner_text("#code")
    page.get_by_role("button", name="Close").click()
    assert not page.locator("#details").is_visible()
    assert wrong == []


@pytest.mark.slow
@pytest.mark.needs_tool("chromium", "chromium")
@pytest.mark.parametrize("width", [390, 1280])
def test_the_report_in_a_browser(browser: Browser, tmp_path: Path, width: int) -> None:
    sizes = [(1.0, 224), (0.5, 192), (0.25, 128)]  # the paper gives the first one's accuracy
    networks = tuple(
        Network(
            *("mobilenet_v1", alpha, resolution, int(5e8 * alpha), 4_000_000, 10 * alpha),
            *(1.0, 2.0, 0.5, 16.0, None),
        )
        for alpha, resolution in sizes
    )
    blocks = (Block("block 1", 900, 100, 45.0, 9.0), Block("block 2", 900, 100, 45.0, 6.0))
    conv = Network(
        *("mobilenet_v1_conv", 1.0, 224, int(4e9), 29_000_000, 40.0, 39.0, 41.0, 0.9, 100.0, None),
        onnxruntime_ms=44.0,
    )
    networks = (dataclasses.replace(networks[0], onnxruntime_ms=11.0), *networks[1:], conv)
    path = tmp_path / "report.html"
    html.write_report(Report("A Processor", "native", 1, 50, networks, blocks, ("Hm",)), path)
    page = browser.new_page(viewport={"width": width, "height": 900}, offline=True)
    page.set_default_timeout(PATIENCE_MS)
    wrong: list[str] = []
    page.on("console", lambda m: wrong.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto(path.as_uri())
    page.wait_for_selector("body[data-ready=true]")

    assert page.locator("#latency .points path").count() == 4
    assert page.locator("#accuracy .points path").count() == 2
    assert "1.10 × as fast as ONNX Runtime’s" in page.inner_text("#fairness-text")
    assert page.locator("#whole tbody tr").last.inner_text().split()[-1] == "–"
    assert page.locator("#blocks .bars path").count() == 4
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    first = page.locator("#networks td.network").first
    assert first.inner_text() == "mobilenet_v1 0.25/128"
    page.get_by_role("button", name="Mult-Adds").click()
    assert first.inner_text() == "mobilenet_v1_conv 1/224"
    assert wrong == []
    page.close()


@pytest.mark.slow
@pytest.mark.needs_tool("chromium", "chromium")
def test_the_page_of_instructions_in_a_browser(browser: Browser, tmp_path: Path) -> None:
    operators = tuple(
        OperatorInstructions(
            *(i, f"{kind}_0", kind, (f"layer.{i}/Conv",), "1x8x8x8", kind, "analytic", {}),
            *(4 * count // 5, count, count / 5, count / 1000),
        )
        for i, (kind, count) in enumerate([("stem", 300), ("pointwise", 500), ("dense", 100)])
    )
    counted = InstructionProfile("b", "m", "rpi4", "qemu-aarch64", 1000, operators, {})
    path = tmp_path / "instructions.html"
    html.write_instructions(counted, path)
    page = browser.new_page(viewport={"width": 390, "height": 844}, offline=True)
    page.set_default_timeout(PATIENCE_MS)
    wrong: list[str] = []
    page.on("console", lambda m: wrong.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto(path.as_uri())
    page.wait_for_selector("body[data-ready=true]")

    assert page.locator("#bars .bars path").count() == 2 * 3
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert _column(page, "name") == ["layer.1/Conv", "layer.0/Conv", "layer.2/Conv"]
    page.get_by_role("button", name="Layer").click()
    assert _column(page, "name") == ["layer.0/Conv", "layer.1/Conv", "layer.2/Conv"]
    assert wrong == []
    page.close()
