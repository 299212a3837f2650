"""Cleans an ONNX graph so that the importer meets few spellings of the same computation.

Everything here is a pass or rewrite rule of onnx-ir and onnxscript, picked one by one, plus one
rule of our own. Rules that ignore attributes that matter are left out on purpose: the library's
`auto_pad` rule forgets dilation.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx
    import onnx_ir

# Constants above this many elements are left to Relax's constant folding (64 MiB of float32).
_FOLD_LIMIT = 1 << 24
# One metadata key a source node: rewriting merges its matches' metadata, so the keys add up.
_SOURCE = "tvm_mobilenet.from/"


def simplify(model: onnx.ModelProto) -> onnx.ModelProto:
    """Returns an equivalent model with fewer kinds of node; graph inputs and outputs keep names.

    Inlines model-local functions, folds constants and shape computations, drops Identity and
    inference Dropout, turns every `x * relu6(x + 3) / 6` and `x * HardSigmoid(x)` into HardSwish,
    merges Min/Max/Relu/Clip chains, zero Pad into Conv and BatchNormalization into Conv or Gemm.
    The model must have static input shapes and opset 14 or later. The argument is not modified;
    `source_nodes` tells which of its nodes a node of the result stands for.
    """
    import onnx_ir as ir
    from onnx_ir.passes import common
    from onnxscript.optimizer import fold_constants_ir
    from onnxscript.rewriter import RewritePass

    graph = ir.from_proto(model)
    common.InlinePass()(graph)
    for node in graph.graph:
        node.metadata_props[_SOURCE + (node.name or node.op_type)] = "yes"
    prepare = ir.passes.Sequential(
        common.RemoveInitializersFromInputsPass(),
        common.AddDefaultAttributesPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=False, size_limit=0),
    )
    prepare(graph)
    rewrite = ir.passes.PassManager(
        [
            RewritePass(_rules()),
            common.LiftConstantsToInitializersPass(lift_all_constants=False, size_limit=0),
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
        rules.min_min_rule,
        rules.max_max_rule,
        rules.min_max_rule,
        rules.max_min_rule,
        rules.successive_relu_rule,
        rules.successive_clip_rule,
        rules.successive_clip_relu_rule,
        rules.successive_relu_clip_rule,
        rules.fuse_pad_into_conv_rule,
        rules.fuse_batchnorm_into_conv_rule,
        rules.fuse_batchnorm_into_gemm_rule,
        _sixth_as_division_rule(),
        *rules.fuse_hardswish_rules(),
    ]


def _sixth_as_division_rule():
    """`clip(...) * (1/6)` (Keras' spelling) -> `clip(...) / 6`, which the HardSwish rules know."""
    import numpy as np
    import onnx_ir as ir
    from onnxscript.rewriter import pattern
    from onnxscript.rewriter._ir_utils import get_singleton_value

    class SixthAsDivision(pattern.RewriteRuleClassBase):
        def pattern(self, op, x, low, high, factor):
            return op.Clip(x, low, high) * factor

        def check(self, context, factor: ir.Value, **_):
            value = get_singleton_value(factor)
            result = pattern.MatchResult()
            if value is None or not np.isclose(value, 1 / 6, rtol=1e-6):
                return result.fail("the factor is not 1/6")
            return result

        def rewrite(self, op, x, low, high, factor: ir.Value):
            six = op.initializer(ir.tensor(np.float32(6)), name=f"{factor.name}_as_divisor")
            return op.Div(op.Clip(x, low, high), six)

    return SixthAsDivision.rule()
