"""PyTorch -> ONNX, by either of PyTorch's two exporters, checked before anything is written."""

from __future__ import annotations

import ast
import io
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tvm_mobilenet.errors import InputError, UsageError

if TYPE_CHECKING:
    import onnx
    import onnx_ir
    import torch

Exporter = Literal["dynamo", "torchscript"]
EXPORTERS: tuple[Exporter, ...] = ("dynamo", "torchscript")


def export_onnx(
    module: torch.nn.Module,
    input_shape: tuple[int, ...],
    path: str | Path | None = None,
    *,
    exporter: Exporter = "dynamo",
    opset: int | None = None,
    input_name: str = "input",
    output_name: str = "logits",
) -> onnx.ModelProto:
    """Exports a module in evaluation mode with a static float32 input of `input_shape`.

    exporter: "dynamo" is PyTorch's torch.export-based one (opset 18 and later), "torchscript" the
    older one, which also knows modules that torch.export cannot trace. opset: default the
    exporter's own. The result passes ONNX's full check; with `path` it is written there at once or
    not at all. The module's training flag is left as it was.

    Raises InputError: the module is not float32, cannot be exported (the exporter's reason), the
    exporter cannot write the opset, or the file cannot be written. UsageError: unknown exporter.
    """
    import onnx

    from tvm_mobilenet.frontend.read import first_line, opset_of

    if exporter not in EXPORTERS:
        raise UsageError(f"unknown exporter '{exporter}'; there are {' and '.join(EXPORTERS)}")
    if path is not None:
        _check_destination(Path(path))
    what = type(module).__name__
    _check_float32(module, what)
    try:
        model = _exported(module, input_shape, exporter, opset, (input_name, output_name))
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # both exporters raise whatever they meet, user code included
        other = EXPORTERS[1 - EXPORTERS.index(exporter)]
        raise InputError(
            f"{what}: the {exporter} exporter fails ({type(error).__name__}: {first_line(error)}); "
            f"try the {other} exporter"
        ) from error
    if opset is not None and (written := opset_of(model)) != opset:
        older = exporter == "dynamo" and opset < written
        hint = "use the torchscript exporter" if older else "leave the opset out"
        raise InputError(
            f"{what}: the {exporter} exporter cannot write opset {opset}, only {written}; {hint}"
        )
    if path is not None:
        _write(model, Path(path))
    return model


def _exported(
    module: torch.nn.Module,
    input_shape: tuple[int, ...],
    exporter: Exporter,
    opset: int | None,
    names: tuple[str, str],
) -> onnx.ModelProto:
    import onnx
    import torch

    from tvm_mobilenet.frontend.quiet import quiet, silent_stdout

    example = torch.zeros(input_shape)
    options = {
        "input_names": [names[0]],
        "output_names": [names[1]],
        "opset_version": opset,
        "verbose": False,
    }
    training = module.training
    module.eval()
    try:
        with quiet(), torch.no_grad():
            if exporter == "torchscript":
                buffer = io.BytesIO()
                with silent_stdout():
                    torch.onnx.export(module, (example,), buffer, dynamo=False, **options)  # type: ignore[arg-type]
                return onnx.load_from_string(buffer.getvalue())
            program = torch.onnx.export(module, (example,), dynamo=True, **options)  # type: ignore[arg-type]
            return _with_readable_names(program.model)  # type: ignore[union-attr]
    finally:
        module.train(training)


def _with_readable_names(model: onnx_ir.Model) -> onnx.ModelProto:
    """Names nodes `features.3/Conv` instead of `node_Conv_83`, values after their nodes.

    The exporter's metadata go: they hold the source code's paths and call stacks.
    """
    import onnx_ir
    from onnx_ir.passes import common

    outputs = set(model.graph.outputs)
    taken: dict[str, int] = {}
    for node in model.graph:
        name = f"{_scope(node)}/{node.op_type}".lstrip("/")
        taken[name] = taken.get(name, 0) + 1
        node.name = name if taken[name] == 1 else f"{name}_{taken[name] - 1}"
        for index, value in enumerate(node.outputs):
            if value not in outputs:
                value.name = f"{node.name}_output_{index}"
    common.ClearMetadataAndDocStringPass()(model)
    return onnx_ir.to_proto(model)


def _scope(node: onnx_ir.Node) -> str:
    """The path of the PyTorch module that a node came from, "" for the outermost one."""
    # A convolution with a folded batch norm carries the batch norm's scope, but its own weight.
    for value in node.inputs[1:2]:
        name = value.name if value is not None and value.is_initializer() else None
        if name and name.endswith(".weight"):
            return name.removesuffix(".weight")
    scopes = ast.literal_eval(node.metadata_props.get("pkg.torch.onnx.name_scopes", "['']"))
    return scopes[-2] if len(scopes) > 1 else ""


def _check_float32(module: torch.nn.Module, what: str) -> None:
    import torch

    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise InputError(
                f"{what}: '{name}' is {tensor.dtype}; only float32 models can be built, so call "
                "module.float() first"
            )


def _check_destination(path: Path) -> None:
    if path.is_dir():
        raise InputError(f"{path} is a directory; give the name of the .onnx file to write")
    if not path.parent.is_dir():
        raise InputError(f"{path}: the directory {path.parent} does not exist")


def _write(model: onnx.ModelProto, path: Path) -> None:
    """Writes beside the destination, then renames: a failure leaves what was there."""
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(model.SerializeToString())
                file.flush()
                os.fsync(file.fileno())
            umask = os.umask(0)
            os.umask(umask)
            Path(temporary).chmod(0o666 & ~umask)
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise InputError(f"{path}: cannot write it: {error.strerror or error}") from None
