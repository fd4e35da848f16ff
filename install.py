"""The WebUI's install step, at each of its starts: installs what is missing and needed, and nothing else.

torch, gradio, numpy and transformers are the WebUI's own and never touched: packages come without their dependencies,
which the WebUI brings too.
"""

import importlib.util
import sys
from importlib.metadata import version


def wanted() -> list[tuple[str, str]]:
    """Modules that have to be there, each with the package that brings it, the most needed first.

    lycoris_lora from 4.0 on imports with torch 2.4 or newer only.
    """
    torch = tuple(int(part) for part in version("torch").split(".")[:2])
    toml_reader = [("tomli", "tomli==2.0.1")] if sys.version_info < (3, 11) else []
    lycoris = "lycoris_lora==3.4.0" if torch < (2, 4) else "lycoris_lora==4.1.3"
    optimizers = ("pytorch_optimizer", "pytorch_optimizer==4.1.0")
    return [*toml_reader, ("toml", "toml==0.10.2"), optimizers, ("lycoris", lycoris)]


def install_missing() -> None:
    """Install each wanted package whose module is not there."""
    for module, package in wanted():
        if importlib.util.find_spec(module) is None:
            import launch  # the WebUI's; only now, for it takes longer to import than all of this

            launch.run_pip(f"install --no-deps {package}", f"{package} for LoRA Workshop")


install_missing()
