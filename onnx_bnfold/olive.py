"""The fold as a pass of Microsoft Olive, for workflows that go on with what it leaves.

Olive finds passes by a package configuration, which takes the place of its own. This one has
Olive's own passes and ours::

    python -m onnx_bnfold.olive > olive_package.json
    olive run --config workflow.json --package-config olive_package.json
"""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

try:
    from olive.hardware import AcceleratorSpec
    from olive.model import ONNXModelHandler
    from olive.model.utils import resolve_onnx_path
    from olive.package_config import OlivePackageConfig
    from olive.passes import Pass
    from olive.passes.pass_config import BasePassConfig, PassConfigParam
except ImportError as error:
    raise ImportError(f"{error}; install the package olive-ai, and what it imports") from error

from onnx_bnfold.api import fold_file
from onnx_bnfold.options import Options
from onnx_bnfold.storage.data_files import data_files_of
from onnx_bnfold.validation import types_of

__all__ = ["OnnxBatchNormFold", "package_config"]

_LOG = logging.getLogger(__name__)
_ANY = ["*"]


class OnnxBatchNormFold(Pass):
    """Fold every BatchNormalization of an ONNX model that can be removed exactly.

    Its settings are the fields of ``onnx_bnfold.Options``, by the same names.
    """

    @classmethod
    def _default_config(cls, accelerator_spec: AcceleratorSpec) -> dict[str, PassConfigParam]:
        types = types_of(Options)
        return {
            field.name: PassConfigParam(
                type_=types[field.name],
                default_value=field.default,
                description=field.metadata["help"],
            )
            for field in dataclasses.fields(Options)
        }

    def _run_for_config(
        self, model: ONNXModelHandler, config: type[BasePassConfig], output_model_path: str
    ) -> ONNXModelHandler:
        asked = {field.name: getattr(config, field.name) for field in dataclasses.fields(Options)}
        target = Path(resolve_onnx_path(output_model_path, Path(model.model_path).name))
        report = fold_file(model.model_path, target, Options(**asked))
        _LOG.info("%s: %s", type(self).__name__, report.summary())
        if not data_files_of(target):
            return ONNXModelHandler(model_path=str(target))
        return ONNXModelHandler(model_path=str(target.parent), onnx_file_name=target.name)


def package_config() -> dict[str, Any]:
    """Return Olive's own package configuration with this pass added, for ``olive.run``."""
    found: dict[str, Any] = json.loads(
        Path(OlivePackageConfig.get_default_config_path()).read_text()
    )
    supported = ("providers", "accelerators", "precisions")
    found["passes"][OnnxBatchNormFold.__name__] = {
        "module_path": f"onnx_bnfold.olive.{OnnxBatchNormFold.__name__}",
        **{f"supported_{what}": _ANY for what in supported},
    }
    return found


if __name__ == "__main__":
    print(json.dumps(package_config(), indent=2))
