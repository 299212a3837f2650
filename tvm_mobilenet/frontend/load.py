"""The command line's MODEL: a built-in name, an .onnx file or `package.module:function`."""

from __future__ import annotations

import difflib
import importlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tvm_mobilenet.errors import InputError, TvmMobilenetError, UsageError
from tvm_mobilenet.frontend.export import Exporter, export_onnx
from tvm_mobilenet.frontend.read import first_line

if TYPE_CHECKING:
    import torch

    from tvm_mobilenet.frontend.model import ImportedModel


@dataclass(frozen=True)
class LoadedModule:
    """A PyTorch module in evaluation mode and the (batch, 3, height, width) it is built for."""

    name: str
    module: torch.nn.Module
    input_shape: tuple[int, int, int, int]
    source: str


def load_model(
    model: str | Path | torch.nn.Module,
    *,
    alpha: float = 1.0,
    resolution: int = 224,
    batch: int = 1,
    classes: int = 1000,
    weights: Path | None = None,
    exporter: Exporter = "dynamo",
) -> ImportedModel:
    """Loads what MODEL may be and imports it into Relax.

    model: a built-in name (`tvm_mobilenet.models.BUILTIN`, which wins over a file of that name), an
    ONNX file, `package.module:function` (called without arguments; the current directory is on the
    path) or a module. alpha and classes shape built-in models only; resolution those and other
    PyTorch modules; batch everything, an ONNX file where its batch axis is symbolic. weights: state
    dict or safetensors for a PyTorch module. exporter: see `export_onnx`.

    Raises InputError for whatever cannot be used, UsageError for options that MODEL does not take.
    """
    from tvm_mobilenet.frontend.onnx_to_relax import import_onnx

    if path := _onnx_file(model):
        options = {"--alpha": alpha != 1.0, "--resolution": resolution != 224}
        options |= {"--classes": classes != 1000, "--weights": weights is not None}
        _refuse(options, f"{path} is an ONNX file, whose size and weights are fixed")
        return import_onnx(path, batch=None if batch == 1 else batch)
    loaded = load_module(
        model, alpha=alpha, resolution=resolution, batch=batch, classes=classes, weights=weights
    )
    proto = export_onnx(loaded.module, loaded.input_shape, exporter=exporter)
    return import_onnx(proto, name=loaded.name, module=loaded.module, source=loaded.source)


def load_module(
    model: str | Path | torch.nn.Module,
    *,
    alpha: float = 1.0,
    resolution: int = 224,
    batch: int = 1,
    classes: int = 1000,
    weights: Path | None = None,
) -> LoadedModule:
    """The PyTorch module that MODEL names, as `load_model` takes it; InputError for ONNX files."""
    import torch

    from tvm_mobilenet import models

    if path := _onnx_file(model):
        raise InputError(f"{path} is a file; a built-in model or package.module:function is needed")
    if batch < 1:
        raise InputError(f"batch {batch} is not a whole number of at least 1")
    if isinstance(model, str) and model in models.BUILTIN:
        builtin = models.create(
            model, alpha=alpha, resolution=resolution, classes=classes, weights=weights
        )
        return LoadedModule(model, builtin, (batch, 3, resolution, resolution), model)
    if isinstance(model, torch.nn.Module):
        module, name, source = model, type(model).__name__, type(model).__name__
    else:
        module, name, source = _from_function(str(model)), str(model).split(":")[-1], str(model)
    options = {"--alpha": alpha != 1.0, "--classes": classes != 1000}
    _refuse(options, f"{source} is a module of its own")
    if resolution < 1:
        raise InputError(f"resolution {resolution} is not a whole number of at least 1")
    if weights is not None:
        models.load_weights(module, weights)
    return LoadedModule(name, module.eval(), (batch, 3, resolution, resolution), source)


def _onnx_file(model: str | Path | torch.nn.Module) -> Path | None:
    """The path when MODEL is a file or looks like an ONNX one, else None."""
    from tvm_mobilenet import models

    if not isinstance(model, str | Path) or model in models.BUILTIN:
        return None
    path = Path(model)
    is_file = isinstance(model, Path) or path.suffix == ".onnx" or path.is_file()
    return path if is_file else None


def _refuse(given: dict[str, bool], because: str) -> None:
    """UsageError when options are given that MODEL does not take."""
    if wrong := [option for option, is_given in given.items() if is_given]:
        raise UsageError(f"{', '.join(wrong)} cannot be applied: {because}")


def _from_function(reference: str) -> torch.nn.Module:
    """Imports `package.module:function` and calls it."""
    import torch

    from tvm_mobilenet import models

    module_name, colon, function_name = reference.partition(":")
    if not colon:
        near = difflib.get_close_matches(reference, models.BUILTIN, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise InputError(
            f"'{reference}' is no built-in model ({', '.join(models.BUILTIN)}), no .onnx file and "
            f"no package.module:function{hint}"
        )
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        function = getattr(importlib.import_module(module_name), function_name)
        result = function if isinstance(function, torch.nn.Module) else function()
    except TvmMobilenetError:
        raise
    except Exception as error:  # the user's code may raise anything
        raise InputError(
            f"'{reference}' fails: {type(error).__name__}: {first_line(error)}"
        ) from error
    if not isinstance(result, torch.nn.Module):
        raise InputError(f"'{reference}' gives a {type(result).__name__}, not a torch.nn.Module")
    return result
