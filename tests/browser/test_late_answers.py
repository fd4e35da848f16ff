"""Answers that come late, in another order, or while somebody types: the page shows what was asked for last."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from PIL import Image

from lora_ext.networks.file import write_network
from tests.browser.clicking import fill, open_tab

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page, Route

pytestmark = [pytest.mark.browser, pytest.mark.slow]


class Held:
    """Requests of a page that wait until they are released."""

    def __init__(self, page: Page, route: str) -> None:
        self._page = page
        self._waiting: list[Route] = []
        self._open = False
        page.route(f"**/lora-workshop/api/{route}", self._handle)

    def _handle(self, route: Route) -> None:
        if self._open:
            route.continue_()
        else:
            self._waiting.append(route)

    def wait(self, count: int) -> None:
        """Until so many wait."""
        for _ in range(600):
            if len(self._waiting) >= count:
                return
            self._page.wait_for_timeout(50)
        raise AssertionError(f"{len(self._waiting)} requests came, not {count}")

    def __len__(self) -> int:
        return len(self._waiting)

    def release(self, place: int = 0) -> None:
        """Send one of them, and wait until the page has its answer."""
        route = self._waiting.pop(place)
        with self._page.expect_request_finished(lambda request: request == route.request):
            route.continue_()
        self._page.wait_for_timeout(200)  # what the page makes of it

    def release_all(self) -> None:
        """Send them, and hold none any more."""
        self._open = True
        for route in self._waiting:
            route.continue_()


@pytest.fixture
def birds(app: Any) -> Iterator[Path]:
    """A folder among the app's networks with `owl` and `raven`."""
    folder: Path = app.home / "models" / "Lora" / "late birds"
    for name in ("owl", "raven"):
        write_network(folder / f"{name}.safetensors", {"lora_unet_a.alpha": torch.tensor(4.0)}, {}, "fp16")
    yield folder
    shutil.rmtree(folder)


def row(page: Page, name: str) -> Locator:
    return page.locator(".lw-network-row", has_text=name)


def test_a_card_is_changed_while_its_words_are_saved(page: Page, birds: Path, tmp_path: Path) -> None:
    """A picture that is chosen, and what is typed meanwhile, outlive the new card that the answer brings."""
    Image.new("RGB", (64, 64), "purple").save(tmp_path / "cover.png")
    open_tab(page, "Networks")
    row(page, "owl").click()
    card = page.locator("#lw-network-card")
    card.locator('[data-key="preferred weight"]').fill("0.7")
    held = Held(page, "network/words")
    card.locator("[data-lw-action=save-words]").click()
    held.wait(1)
    with page.expect_file_chooser() as chooser:
        card.locator("label", has_text="Set picture").click()
    title = card.locator('[data-key="modelspec.title"]')
    title.press_sequentially("Owl")
    held.release()
    page.wait_for_function("document.querySelector('[data-key=\"preferred weight\"]').dataset.was === '0.7'")
    page.keyboard.type(" at night")
    assert title.input_value() == "Owl at night"
    assert card.locator("[data-lw-action=save-metadata]").is_enabled()
    chooser.value.set_files(tmp_path / "cover.png")
    page.wait_for_function("document.querySelector('.lw-cover img')?.naturalWidth === 64")
    assert title.input_value() == "Owl at night"


def test_what_is_typed_during_a_save_is_saved_by_a_second_click(page: Page, birds: Path) -> None:
    open_tab(page, "Networks")
    row(page, "owl").click()
    weight = page.locator('#lw-network-card [data-key="preferred weight"]')
    save = page.locator("#lw-network-card [data-lw-action=save-words]")
    held = Held(page, "network/words")
    for value in ("0.7", "0.8"):
        weight.fill(value)
        save.click()
        held.wait(1)
    held.release()
    held.wait(1)
    held.release()
    page.wait_for_function("document.querySelector('[data-key=\"preferred weight\"]').dataset.was === '0.8'")
    assert weight.input_value() == "0.8"
    assert save.is_disabled()
    assert json.loads((birds / "owl.json").read_text(encoding="utf-8")) == {"preferred weight": 0.8}


def test_a_card_that_is_opened_again_during_its_save_shows_what_was_saved(page: Page, birds: Path) -> None:
    open_tab(page, "Networks")
    row(page, "owl").click()
    card = page.locator("#lw-network-card")
    weight = card.locator('[data-key="preferred weight"]')
    weight.fill("0.7")
    held = Held(page, "network/words")
    card.locator("[data-lw-action=save-words]").click()
    held.wait(1)
    for name in ("raven", "owl"):
        row(page, name).click()
        card.locator("h4", has_text=name).wait_for()
    assert weight.input_value() != "0.7"
    held.release()
    page.wait_for_function("document.querySelector('[data-key=\"preferred weight\"]').value === '0.7'")
    assert card.locator("[data-lw-action=save-words]").is_disabled()


def test_kinds_fill_the_form_in_the_order_of_the_clicks(page: Page, app: Any) -> None:
    first, second = (
        page.locator(f"#lw-kind-what [data-name={each['name']}]") for each in app.ask("/presets")["subjects"][:2]
    )
    with page.expect_response("**/form/plan"):
        first.click()
    expected = page.evaluate("loraWorkshop.form.values()")
    held = Held(page, "presets/apply")
    second.click()
    first.click()
    held.wait(1)
    held.release()
    held.wait(1)
    assert page.evaluate("loraWorkshop.form.values()") != expected
    with page.expect_response("**/form/plan"):
        held.release()
    assert page.evaluate("loraWorkshop.form.values()") == expected


def test_the_card_that_was_opened_last_stays(page: Page, birds: Path) -> None:
    open_tab(page, "Networks")
    held = Held(page, "network?path=*")
    row(page, "owl").click()
    held.wait(1)
    row(page, "raven").click()
    held.wait(2)
    card = page.locator("#lw-network-card h4")
    held.release(1)
    card.filter(has_text="raven").wait_for()
    held.release()
    assert card.inner_text() == "raven"


def test_what_could_not_be_saved_is_told_beside_another_card(page: Page, birds: Path, complaints: list[str]) -> None:
    open_tab(page, "Networks")
    row(page, "owl").click()
    card = page.locator("#lw-network-card")
    card.locator('[data-key="preferred weight"]').fill("much")
    held = Held(page, "network/words")
    card.locator("[data-lw-action=save-words]").click()
    held.wait(1)
    row(page, "raven").click()
    card.locator("h4", has_text="raven").wait_for()
    held.release()
    page.locator(".lw-networks-page [data-lw-error]", has_text="owl: ").wait_for()
    assert card.locator("h4").inner_text() == "raven"
    assert len(complaints) == 1 and "400" in complaints.pop()


def test_the_newest_list_of_networks_is_shown(page: Page, birds: Path) -> None:
    open_tab(page, "Networks")
    row(page, "raven").wait_for()
    page.wait_for_load_state("networkidle")
    held = Held(page, "networks")
    refresh = page.locator("[data-lw-action=refresh-networks]")
    open_tab(page, "Train")
    open_tab(page, "Networks")
    held.wait(1)
    shutil.copyfile(birds / "owl.safetensors", birds / "owlet.safetensors")
    refresh.click()
    held.wait(2)
    held.release(1)
    row(page, "owlet").wait_for()
    (birds / "owlet.safetensors").unlink()
    held.release()
    assert row(page, "owlet").count() == 1  # the earlier question's answer, though it came later


def test_two_clicks_start_one_run(page: Page, app: Any) -> None:
    held = Held(page, "form/start")
    fill(page, "train_data_dir", str(app.pictures))
    page.locator("#lw-start").dblclick()
    held.wait(1)
    page.wait_for_timeout(500)
    assert len(held) == 1


def test_a_late_answer_to_start_does_not_hide_what_is_wrong_now(page: Page) -> None:
    held = Held(page, "form/start")
    fill(page, "learning_rate", "fast")
    page.locator("#lw-start").click()
    held.wait(1)
    fill(page, "learning_rate", "slow")
    errors = page.locator("#lw-plan .lw-errors")
    errors.filter(has_text="learning_rate = 'slow'").wait_for()
    held.release()
    page.locator("#lw-control-error", has_text="not started").wait_for()
    assert "learning_rate = 'slow'" in errors.inner_text()


def test_what_did_not_change_is_not_drawn_anew(page: Page) -> None:
    """So that what somebody has marked there stays marked."""
    fill(page, "learning_rate", "fast")
    errors = page.locator("#lw-plan .lw-errors")
    errors.filter(has_text="learning_rate = 'fast'").wait_for()
    held = Held(page, "form/start")
    errors.evaluate("node => { node.dataset.mark = 'here' }")
    page.locator("#lw-start").click()
    held.wait(1)
    held.release()
    assert errors.get_attribute("data-mark") == "here"


def test_the_last_work_does_not_overwrite_what_is_typed(page: Page, app: Any, birds: Path) -> None:
    app.ask("/tools/check/run", {"settings": {"files": str(birds / "owl.safetensors")}})
    held = Held(page, "tools/status")
    page.reload()
    held.wait(1)
    open_tab(page, "Files")
    field = page.locator("#lw-files .lw-tool:visible textarea").first
    field.fill("mine")
    tool = page.locator("#lw-files .lw-tool:visible").get_attribute("data-tool")
    held.release_all()
    page.locator("#lw-tool-state", has_text="finished").wait_for()
    assert page.locator("#lw-files .lw-tool:visible").get_attribute("data-tool") == tool
    assert field.input_value() == "mine"
