"""Who can take part in a bench: one file a runtime, all with the same small protocol.

To add one, write its file with a subclass of `Contestant` and name it in `_PLACES`.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Sequence

from tvm_mobilenet.errors import UsageError
from tvm_mobilenet.profiling.contestants.base import Contestant, Source

__all__ = ["OURS", "PEAK", "PEERS", "Contestant", "Source", "check_peers", "contestant"]

OURS = "tvm-mobilenet"
PEAK = "fma-peak"

_PLACES = {
    OURS: "ours:Ours",
    PEAK: "fma_peak:FmaPeak",
    "onnxruntime": "onnxruntime:OnnxRuntime",
    "openvino": "openvino:OpenVino",
    "litert": "litert:LiteRt",
    "ncnn": "ncnn:Ncnn",
    "mnn": "mnn:Mnn",
    "torch": "torch:TorchEager",
    "torch-compile": "torch:TorchCompile",
}

PEERS = tuple(name for name in _PLACES if name not in (OURS, PEAK))


def contestant(name: str) -> type[Contestant]:
    """The class of one contestant; imports its file, not yet its runtime."""
    module, cls = _PLACES[name].split(":")
    found: type[Contestant] = getattr(importlib.import_module(f"{__name__}.{module}"), cls)
    return found


def check_peers(names: Sequence[str]) -> None:
    """UsageError, with the nearest names, when a name is not in `PEERS`."""
    for name in names:
        if name not in PEERS:
            near = difflib.get_close_matches(name, PEERS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(PEERS)}"
            raise UsageError(f"no peer is called {name!r}; {hint}")
