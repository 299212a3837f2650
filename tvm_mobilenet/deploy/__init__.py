"""Bundles: the files that a device needs to run a model, and to prove that it runs right."""

from __future__ import annotations

from tvm_mobilenet.deploy.builder import Built, build
from tvm_mobilenet.deploy.bundle import check_output, write_bundle
from tvm_mobilenet.deploy.validate import validate_bundle, validate_model

__all__ = [
    "Built",
    "build",
    "check_output",
    "validate_bundle",
    "validate_model",
    "write_bundle",
]
