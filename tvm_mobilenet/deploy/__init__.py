"""Bundles: the files that a device needs to run a model, and to prove that it runs right."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from tvm_mobilenet.deploy.builder import Built, build, why_not_here
from tvm_mobilenet.deploy.bundle import check_output, write_bundle
from tvm_mobilenet.deploy.validate import validate_bundle, validate_model

if TYPE_CHECKING:
    from tvm_mobilenet.remote.deploy import Deployment

__all__ = [
    "Built",
    "build",
    "check_output",
    "validate_bundle",
    "validate_model",
    "why_not_here",
    "write_bundle",
]


class _CallablePackage(ModuleType):
    """`tm.deploy(...)` is a verb of the API and this package has its name: so it can be called."""

    def __call__(self, bundle: str | Path, **options: Any) -> Deployment:
        """Prove and time a bundle on another machine; see `remote.deploy.deploy`."""
        from tvm_mobilenet import api

        return api.deploy(bundle, **options)


sys.modules[__name__].__class__ = _CallablePackage
