"""Where the demo's files lie."""

from __future__ import annotations

from pathlib import Path

from lora_ext.protocols import UserError

ASSETS = Path(__file__).resolve().parents[1] / "assets"


def demo_checkpoint_path() -> Path:
    """The demo checkpoint; its YAML lies beside it."""
    return _present(ASSETS / "demo-sd1.safetensors")


def demo_dataset_path() -> Path:
    """The folder of the demo's pictures, an `N_name` folder inside it."""
    return _present(ASSETS / "demo-dataset")


def demo_config_path() -> Path:
    """The settings of the demo's run."""
    return _present(ASSETS / "demo.toml")


def _present(path: Path) -> Path:
    if not path.exists():
        raise UserError(f"{path} is missing: this copy of LoRA Workshop is not complete; get it again")
    return path
