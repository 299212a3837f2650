"""A profile as one HTML page that needs no network.

The charts are plotly's: maintained, MIT, and its plots zoom, name what the pointer is on and
redraw themselves for a phone. Its JavaScript (4.8 MB) and the kernels' code travel compressed in
the page, which every browser since 2023 unpacks by itself (``DecompressionStream``), 1.5 MB
instead of 5. The page's own part is in `page/`.
"""

from __future__ import annotations

import base64
import gzip
import importlib.util
import json
import re
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvm_mobilenet.errors import MissingToolError
from tvm_mobilenet.json_values import plain
from tvm_mobilenet.profiling import counters, exports
from tvm_mobilenet.profiling.kernels import read_kernels
from tvm_mobilenet.profiling.tuning_curves import curves

if TYPE_CHECKING:
    from tvm_mobilenet.profiling.instructions import InstructionProfile
    from tvm_mobilenet.profiling.layer_parity import LayerParity
    from tvm_mobilenet.profiling.profile import Profile
    from tvm_mobilenet.profiling.report import Report

_PAGE = Path(__file__).parent / "page"
# Table 2 of the MobileNetV1 paper (arXiv 1704.04861): share of Mult-Adds by kind of layer.
PAPER_SHARES = {"pointwise": 0.9486, "depthwise": 0.0306, "stem": 0.0119, "dense": 0.0018}


def check() -> None:
    """MissingToolError when the plotting library is not installed."""
    if importlib.util.find_spec("plotly") is None:
        raise MissingToolError("--html needs plotly: pip install 'tvm-mobilenet[report]'")


def write_html(
    profile: Profile, path: Path, logs: Path | None = None, parity: LayerParity | None = None
) -> None:
    """Write the page; MissingToolError without plotly.

    logs: the directory of tuning records that the bundle was built with (see `build`).
    parity: of its operators, in place of the verdict that the bundle carries.
    """
    check()
    path.write_text(page(profile, logs, parity), encoding="utf-8")


def page(profile: Profile, logs: Path | None = None, parity: LayerParity | None = None) -> str:
    """The page's text; see `write_html`."""
    symbols = [operator.symbol for operator in profile.operators]
    kernels = read_kernels(Path(profile.bundle), symbols)
    data = exports.document(profile)
    del data["nanoseconds"]
    data["paper_shares"] = PAPER_SHARES
    data["parity_layers"] = []
    if parity is not None:
        data |= {"parity": parity.whole, "parity_layers": parity.layers}
    data["counters"] = [
        (event.title, data["counters"][event.name])
        for event in counters.events()
        if event.name in data["counters"]
    ]
    data["tuning"] = [curve.row() for curve in curves(Path(profile.bundle), logs)]
    return _filled(
        "page",
        title=f"{profile.model} on {profile.target}: profile",
        data=data,
        kernels=_packed(_json(kernels)),
    )


def write_report(report: Report, path: Path) -> None:
    """Write the page of a `report`; MissingToolError without plotly."""
    check()
    text = _filled("report", title="MobileNets on this machine", data=report.document())
    path.write_text(text, encoding="utf-8")


def write_instructions(profile: InstructionProfile, path: Path) -> None:
    """Write the page of executed instructions; MissingToolError without plotly."""
    check()
    title = f"{profile.model} on {profile.target}: instructions"
    text = _filled("instructions", title=title, data={**profile.document(), "threads": 1})
    path.write_text(text, encoding="utf-8")


def _filled(name: str, *, title: str, data: dict[str, Any], **more: str) -> str:
    """The page of that name with its styles, scripts and data in place."""
    from plotly.offline import get_plotlyjs

    parts = {
        "title": escape(title),
        "css": (_PAGE / "page.css").read_text("utf-8"),
        "common": (_PAGE / "common.js").read_text("utf-8"),
        "js": (_PAGE / f"{name}.js").read_text("utf-8"),
        "data": _inside_script(_json(data)),
        "plotly": _packed(get_plotlyjs()),
        **more,
    }
    frame, main = ((_PAGE / f"{part}.html").read_text("utf-8") for part in ("frame", name))
    text = frame.replace("{{main}}", main)
    # one pass: what is filled in may itself look like a place to fill
    return re.sub(r"{{(\w+)}}", lambda match: parts[match[1]], text)


def _json(value: Any) -> str:
    return json.dumps(plain(value), allow_nan=False, separators=(",", ":"))


def _inside_script(text: str) -> str:
    """JSON that cannot end the script element it stands in, whatever a node is called."""
    return text.replace("<", "\\u003c")


def _packed(text: str) -> str:
    # mtime 0: the same profile gives the same page
    return base64.b64encode(gzip.compress(text.encode(), 9, mtime=0)).decode()
