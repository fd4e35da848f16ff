"""The tab without a browser: it builds silently, needs no host of its own, and shows foreign text as text."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import gradio as gr
import pytest
from PIL import Image

from lora_ext.config.train_config import TrainConfig, make_config
from lora_ext.jobs.registry import RunRegistry
from lora_ext.jobs.runner import JobRunner
from lora_ext.protocols import CheckpointInfo, Folders
from lora_ext.ui import markup
from lora_ext.ui.forms import SettingsForm
from lora_ext.ui.page import localised
from lora_ext.ui.tab import Panel, TrainingActions, make_tab
from lora_ext.web.planning import PlanningDesk

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


@pytest.fixture
def actions(host: ShelfHost) -> TrainingActions:
    return TrainingActions(host, JobRunner(host, RunRegistry(host.home / "runs")), PlanningDesk(host))


class PlainField:
    """Stands for a component: a form asks for names only."""


def form_of(**values: object) -> tuple[SettingsForm, list[object]]:
    return SettingsForm({name: PlainField() for name in values}), list(values.values())


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.new("RGB", (64, 64), "red").save(folder / "a.png")
    (folder / "a.txt").write_text(f"a star {HOSTILE}", encoding="utf-8")
    return folder


def test_the_tab_builds_without_a_warning(host: ShelfHost) -> None:
    built = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tab = make_tab(host, JobRunner(host, RunRegistry(host.home / "runs")), [Panel("More", built.append)])
        with gr.Blocks(analytics_enabled=False) as page:
            tab.render()
    identifiers = [block.elem_id for block in page.blocks.values() if block.elem_id]
    assert built[0].elem_id == "lw-tab-more"
    assert all(identifier.startswith("lw-") for identifier in identifiers)
    assert len(identifiers) == len(set(identifiers))
    assert {"lw-start", "lw-look", "lw-plan", "lw-network_dim", "lw-restore"} <= set(identifiers)


def test_the_key_of_the_page_stands_where_the_script_looks(host: ShelfHost) -> None:
    tab = make_tab(host, JobRunner(host, RunRegistry(host.home / "runs")), page_key=f"s3cret{HOSTILE}")
    (live,) = [block.value for block in tab.blocks.values() if block.elem_id == "lw-live-panel"]
    assert 'data-key="s3cret&lt;img src=x onerror=&quot;alert(1)&quot;&gt;"' in live


def test_every_handler_goes_around_the_queue_and_polls_nothing(host: ShelfHost) -> None:
    tab = make_tab(host, JobRunner(host, RunRegistry(host.home / "runs")))
    for dependency in tab.dependencies:
        assert dependency["every"] is None
        if dependency["backend_fn"] and dependency["trigger"] != "load":
            assert dependency["queue"] is False, dependency["targets"]


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


def test_foreign_text_is_shown_as_text(actions: TrainingActions, host: ShelfHost, pictures: Path) -> None:
    form, values = form_of(train_data_dir=str(pictures), output_name="star", resolution="64", bucket_reso_steps="8")
    report, plan = actions.look(form, values)
    everything = report + plan + markup.status_bar(host.checkpoint_info()) + markup.errors([HOSTILE])
    assert HOSTILE not in everything
    assert everything.count("&lt;img src=x onerror=&quot;alert(1)&quot;&gt;") >= 3


def test_look_and_plan(actions: TrainingActions, pictures: Path) -> None:
    form, values = form_of(train_data_dir=str(pictures), output_name="star", resolution="64", bucket_reso_steps="8")
    report, plan = actions.look(form, values)
    assert "1 picture · 1 caption · 1 size" in report
    assert "1 pictures an epoch ÷ batch 1 = 1 step" in plan
    assert "<strong>10 steps</strong>" in plan
    assert "star-000001, …, star-000009, star" in plan
    assert actions.plan(form, values) == plan


def test_what_is_wrong_stands_on_the_page(actions: TrainingActions) -> None:
    form, values = form_of(train_data_dir="/no/such/folder", output_name="star")
    assert "there is no such folder" in actions.look(form, values)[0]
    assert "there is no such folder" in actions.start(form, values)
    form, values = form_of(train_data_dir="", network_dim="0", seed="x")
    for shown in (actions.plan(form, values), actions.start(form, values), actions.look(form, values)[0]):
        assert shown.count("<li>") == 2
        assert 'class="lw-errors"' in shown


def test_a_page_without_a_folder_asks_for_one_and_blames_nobody(actions: TrainingActions) -> None:
    form, values = form_of(train_data_dir=" ")
    assert "lw-errors" not in actions.plan(form, values)
    assert "lw-errors" not in "".join(actions.look(form, values, asked=False))
    assert "lw-errors" in actions.look(form, values)[0]


def test_settings_of_the_latest_run_come_back(actions: TrainingActions, tmp_path: Path) -> None:
    form, _ = form_of(output_name="", network_dim="")
    assert all("value" not in update for update in actions.restore(form, ""))
    for name, rank in (("first", 4), ("second", 8)):
        config = make_config({"output_name": name, "network_dim": rank})
        actions.runner.registry.create(config, tmp_path).close()
    assert [update["value"] for update in actions.restore(form, "")] == ["second", "8"]
    first = actions.runner.registry.records()[-1].id
    assert [update["value"] for update in actions.restore(form, first)] == ["first", "4"]
    assert all("value" not in update for update in actions.restore(form, "20200101-000000-gone"))


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
