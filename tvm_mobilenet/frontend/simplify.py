"""Cleans an ONNX graph so that the importer meets few spellings of the same computation.

Passes and rewrite rules of onnx-ir and onnxscript, picked one by one, and a few of our own. Left
out on purpose are the library's rules for `auto_pad`, which forgets dilation, and for chains of
Clip, Min and Max, which is wrong for disjoint bounds and gives two constants one name.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx
    import onnx_ir

# Constants above this many elements are left to Relax's constant folding (64 MiB of float32).
_FOLD_LIMIT = 1 << 24
CONSTANT_MARK = "#"
# One metadata key a source node: rewriting merges its matches' metadata, so the keys add up.
_SOURCE = "tvm_mobilenet.from/"


def simplify(model: onnx.ModelProto) -> onnx.ModelProto:
    """Returns an equivalent model with fewer kinds of node; graph inputs and outputs keep names.

    Inlines model-local functions, folds constants and shape computations, drops Identity and
    inference Dropout, turns every `x * relu6(x + 3) / 6` and `x * HardSigmoid(x)` into HardSwish,
    merges Min/Max/Relu/Clip chains, zero Pad into Conv and BatchNormalization into Conv or Gemm,
    per-channel factors and terms into Conv.
    The model must have static input shapes and opset 14 or later. The argument is not modified;
    `source_nodes` tells which of its nodes a node of the result stands for. Constants have
    CONSTANT_MARK behind their names.
    """
    import onnx
    import onnx_ir as ir
    from onnx_ir.passes import common
    from onnxscript.optimizer import fold_constants_ir
    from onnxscript.rewriter import RewritePass

    copy = onnx.ModelProto()  # the IR shares, and renames, the tensors of what it is made from
    copy.CopyFrom(model)
    graph = ir.from_proto(copy)
    common.InlinePass()(graph)
    for node in graph.graph:
        node.metadata_props[_SOURCE + (node.name or node.op_type)] = "yes"
    prepare = ir.passes.Sequential(
        common.RemoveInitializersFromInputsPass(),
        common.AddDefaultAttributesPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
    )
    prepare(graph)
    # The library names a folded bias after its weight, whatever else may have that name.
    for value in list(graph.graph.initializers.values()):
        value.name = f"{value.name}{CONSTANT_MARK}"
    rewrite = ir.passes.PassManager(
        [
            RewritePass(_rules()),
            common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
            common.IdentityEliminationPass(),
            common.RemoveUnusedNodesPass(),
        ],
        steps=4,
        early_stop=True,
    )
    # Twice: folding exposes patterns (weights behind Transpose), rewriting exposes constants.
    for _ in range(2):
        fold_constants_ir(
            graph,
            onnx_shape_inference=True,
            input_size_limit=_FOLD_LIMIT,
            output_size_limit=_FOLD_LIMIT,
            should_fold=_small_enough,
        )
        rewrite(graph)
    finish = ir.passes.Sequential(
        common.RemoveUnusedFunctionsPass(),
        common.RemoveUnusedOpsetsPass(),
        common.TopologicalSortPass(),
        common.OutputFixPass(),
        common.NameFixPass(),
    )
    finish(graph)
    return ir.to_proto(graph)


def source_nodes(node: onnx.NodeProto) -> tuple[str, ...]:
    """The names of the nodes of the original model that a node of a simplified one stands for."""
    keys = [p.key for p in node.metadata_props if p.key.startswith(_SOURCE)]
    return tuple(key.removeprefix(_SOURCE) for key in keys) or (node.name or node.op_type,)


def _small_enough(node: onnx_ir.Node) -> bool | None:
    """Never evaluates what makes something huge of little, as Expand and ConstantOfShape can."""
    for value in node.outputs:
        if value.shape is not None and value.shape.is_static():
            if math.prod(value.shape.numpy()) > _FOLD_LIMIT:
                return False
        elif node.op_type in ("ConstantOfShape", "Expand", "Range", "Tile", "Pad", "Resize"):
            return False
    return None


def _rules() -> list:
    from onnxscript.rewriter.rules import common as rules

    from tvm_mobilenet.frontend.rewrite_rules import own_rules

    return [
        *rules.mul_by_1_rule.commute(),
        *rules.add_0_rule.commute(),
        rules.sub_0_rule,
        rules.div_by_1_rule,
        rules.dropout_zero_rule,
        rules.dropout_inference_rule,
        rules.no_op_cast_rule,
        rules.no_op_expand_rule,
        rules.no_op_transpose_rule,
        rules.transpose_transpose_rule,
        rules.materialize_reshape_shape_rule,
        rules.successive_relu_rule,
        rules.fuse_pad_into_conv_rule,
        rules.fuse_batchnorm_into_conv_rule,
        rules.fuse_batchnorm_into_gemm_rule,
        *own_rules(),
        *rules.fuse_hardswish_rules(),
    ]
