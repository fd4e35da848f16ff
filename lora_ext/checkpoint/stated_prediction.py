"""What a checkpoint predicts, as far as its file or the YAML beside it says so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lora_ext.checkpoint.checkpoint import PredictionType
from lora_ext.checkpoint.tensor_files import TensorFile
from lora_ext.protocols import UserError

VELOCITY_MARK = "v_pred"
"""A tensor that some SDXL checkpoints carry to say that they predict velocities."""

_WORDS: dict[str, PredictionType] = {
    "v": "v_prediction", "v_prediction": "v_prediction", "epsilon": "epsilon", "eps": "epsilon",
}  # fmt: skip


def stated_prediction(file: TensorFile) -> PredictionType | None:
    """By the YAML beside the file, its mark or its metadata, in this order; None where none of them says anything."""
    yaml_path = file.path.with_suffix(".yaml")
    if yaml_path.is_file():
        import yaml

        try:
            tree = yaml.safe_load(yaml_path.read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise UserError(f"{yaml_path}: cannot be read as a YAML ({error}): repair or remove it") from error
        params = section(tree, "model", "params")
        if params:
            return "v_prediction" if predicts_velocity(params) else "epsilon"
    if VELOCITY_MARK in file.shapes:
        return "v_prediction"
    return _WORDS.get(file.metadata.get("modelspec.prediction_type", "").lower())


def predicts_velocity(params: Mapping[str, Any]) -> bool:
    """Whether `model.params` of a YAML say so, in ldm's words or in sgm's."""
    scaling = str(section(params, "denoiser_config", "params", "scaling_config").get("target", ""))
    return params.get("parameterization") == "v" or scaling.endswith(".VScaling")


def section(tree: Any, *names: str) -> Mapping[str, Any]:
    """The mapping at a path of a YAML tree; empty where there is none."""
    for name in names:
        tree = tree.get(name) if isinstance(tree, Mapping) else None
    return tree if isinstance(tree, Mapping) else {}
