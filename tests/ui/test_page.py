"""The tab without a browser: it builds silently, needs no host of its own, and shows foreign text as text."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import gradio as gr
import pytest

from lora_ext.config.train_config import TrainConfig, make_config
from lora_ext.protocols import CheckpointInfo, Folders
from lora_ext.ui.page import localised
from lora_ext.ui.tab import Panel, make_tab

HOSTILE = '<img src=x onerror="alert(1)">'


class ShelfHost:
    """A host with folders and a name, enough for everything that is not training."""

    name = "shelf"

    def __init__(self, home: Path) -> None:
        self.home = home

    def checkpoint_info(self) -> CheckpointInfo:
        return CheckpointInfo(f"model {HOSTILE}", "SD1", "epsilon", "cpu", "float32", "baked", 1.25, 8.0)

    def samplers(self) -> list[str]:
        return ["Euler a"]

    def folders(self) -> Folders:
        return Folders((self.home / "Lora",), self.home / "runs", self.home / "images")


@pytest.fixture
def host(tmp_path: Path) -> ShelfHost:
    return ShelfHost(tmp_path)


def test_the_tab_builds_without_a_warning(host: ShelfHost) -> None:
    built = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tab = make_tab(host, [Panel("More", built.append)])
        with gr.Blocks(analytics_enabled=False) as page:
            tab.render()
    identifiers = [block.elem_id for block in page.blocks.values() if block.elem_id]
    assert built[0].elem_id == "lw-tab-more"
    assert all(identifier.startswith("lw-") for identifier in identifiers)
    assert len(identifiers) == len(set(identifiers))


def test_the_key_of_the_page_stands_where_the_script_looks(host: ShelfHost) -> None:
    tab = make_tab(host, page_key=f"s3cret{HOSTILE}")
    (page,) = [block.value for block in tab.blocks.values() if block.elem_id == "lw-train-page"]
    assert 'data-key="s3cret&lt;img src=x onerror=&quot;alert(1)&quot;&gt;"' in page


def test_gradio_handles_nothing_but_the_status_bar_when_the_page_is_loaded(host: ShelfHost) -> None:
    tab = make_tab(host)
    assert [(each["trigger"], each["every"]) for each in tab.dependencies] == [("load", None)]


def test_the_tab_needs_no_standalone_host_and_no_heavy_package() -> None:
    program = (
        "import sys\n"
        "for name in ('lora_ext.host', 'diffusers', 'lycoris'): sys.modules[name] = None\n"
        "import lora_ext.ui.tab, lora_ext.web.routes\n"
        "heavy = {'transformers', 'diffusers', 'lycoris', 'pytorch_optimizer'}\n"
        "heavy &= {name for name, module in sys.modules.items() if module}\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[2])


def test_nothing_is_fetched_from_elsewhere() -> None:
    page = (
        '<head><link rel="preconnect" href="https://fonts.googleapis.com" />'
        '<link\n\trel="preconnect"\n\thref="https://fonts.gstatic.com"\n crossorigin="anonymous"\n/>'
        '<script\n src="https://cdn.example/x.min.js"\n async\n></script>'
        '<script type="module" crossorigin src="./assets/index.js"></script></head><body></body>'
    )
    served = localised(page)
    assert "https://" not in served
    assert './assets/index.js"></script>' in served
    assert served.index("lora-workshop/lora_workshop.js") < served.index("</head>")


def test_default_configuration_is_the_one_of_the_form() -> None:
    assert make_config({}) == TrainConfig()
