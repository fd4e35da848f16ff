"""Who may ask: names and passwords on the page and on the API, other sites, and a WebUI without its page."""

from __future__ import annotations

import json
import shutil
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from runs import API, SMALL, draw_dataset, ended, start

if TYPE_CHECKING:
    from conftest import WebUI

pytestmark = pytest.mark.webui

NAME = "lw-test-access"
USER, PASSWORD = "anna", "secret"
START_IN_PAGE = """async ([route, settings]) => {
    const headers = {"Content-Type": "application/json"};
    const answer = await fetch(route, {method: "POST", headers, body: JSON.stringify({settings})});
    return answer.status;
}"""


def answer(url: str, data: bytes | None = None, headers: dict[str, str] | None = None) -> int:
    """The status of a GET, or of a POST where there is data."""
    request = urllib.request.Request(url, data, {"Content-Type": "application/json", **(headers or {})})
    try:
        with urllib.request.urlopen(request, timeout=60) as answered:
            return int(answered.status)
    except urllib.error.HTTPError as error:
        return error.code


def every_answer(webui: WebUI, headers: dict[str, str] | None = None) -> set[int]:
    """The statuses of all of our routes, asked without what they need."""
    with urllib.request.urlopen(f"{webui.url}/openapi.json", timeout=60) as answered:
        paths = json.loads(answered.read())["paths"]
    ours = {path: set(methods) for path, methods in paths.items() if path.startswith(API)}
    assert {f"{API}/start", f"{API}/status", f"{API}/run/{{run_id}}", f"{API}/picture"} <= set(ours)
    asked = [(path, b"{}" if method == "post" else None) for path, methods in ours.items() for method in methods]
    return {answer(webui.url + path, data, headers) for path, data in asked}


def cookie_of(webui: WebUI, password: str) -> str | None:
    """The cookie that the page's login gives; None where it refuses."""
    form = urllib.parse.urlencode({"username": USER, "password": password}).encode()
    try:
        with urllib.request.urlopen(f"{webui.url}/login", form, timeout=60) as answered:
            return "; ".join(cookie.partition(";")[0] for cookie in answered.headers.get_all("Set-Cookie"))
    except urllib.error.HTTPError as error:
        assert error.code == 400
        return None


@pytest.fixture(scope="module", params=[True, False], ids=["with --api", "without --api"])
def page_with_login(request: pytest.FixtureRequest, another_webui: Callable[..., Any]) -> Iterator[WebUI]:
    with another_webui("--gradio-auth", f"{USER}:{PASSWORD}", api=request.param) as started:
        yield started
        for file in started.networks.glob(f"{NAME}*"):
            file.unlink()


def test_nothing_answers_before_the_login(page_with_login: WebUI) -> None:
    webui = page_with_login
    assert every_answer(webui) == {401}
    assert cookie_of(webui, "wrong") is None
    assert every_answer(webui, {"Cookie": "access-token=guessed; access-token-unsecure=guessed"}) == {401}


def test_posts_of_other_sites_are_refused_after_it(page_with_login: WebUI) -> None:
    webui = page_with_login
    cookie = {"Cookie": cookie_of(webui, PASSWORD) or ""}
    status = f"{webui.url}{API}/status"
    assert answer(status, headers=cookie) == 200
    assert answer(status, headers={**cookie, "Origin": webui.url}) == 200
    for elsewhere in ({"Origin": "http://other.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}):
        assert every_answer(webui, {**cookie, **elsewhere}) == {403}, elsewhere


@pytest.mark.browser
def test_the_page_works_after_it(page_with_login: WebUI, tmp_path: Path) -> None:
    from playwright.sync_api import sync_playwright

    webui = page_with_login
    dataset = draw_dataset(tmp_path / "pictures")
    settings = {**SMALL, "train_data_dir": str(dataset), "output_name": NAME}
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        context = browser.new_context()
        context.set_default_timeout(120_000)
        assert context.request.post(f"{webui.url}/login", form={"username": USER, "password": PASSWORD}).ok
        page = context.new_page()
        page.goto(webui.url, wait_until="domcontentloaded")
        page.locator("#tabs > .tab-nav button", has_text="LoRA Workshop").click()
        assert page.evaluate(START_IN_PAGE, [f".{API}/start", settings]) == 200
        page.locator("#lw-run-name", has_text=NAME).wait_for()
        page.locator("#lw-run-state", has_text="finished").wait_for()
        assert page.locator("#lw-control-error").inner_text() == ""
        browser.close()
    assert (webui.networks / f"{NAME}.safetensors").is_file()


@pytest.mark.browser
def test_the_page_works_under_api_auth_alone(another_webui: Callable[..., Any], tmp_path: Path) -> None:
    """The page is open there: its script and its pictures are let in, others are not, and no login pops up."""
    from playwright.sync_api import sync_playwright

    dataset = draw_dataset(tmp_path / "pictures")
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    drawn = {"sample_every_n_epochs": 1, "sample_prompts": "a thing --s 2", "output_name": NAME}
    settings = {**SMALL, **drawn, "train_data_dir": str(dataset)}
    with another_webui("--api-auth", f"{USER}:{PASSWORD}") as webui, sync_playwright() as playwright:
        assert every_answer(webui) == {401}
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        page.set_default_timeout(120_000)
        refused: list[str] = []
        page.on("response", lambda answered: refused.append(answered.url) if answered.status == 401 else None)
        page.goto(webui.url, wait_until="domcontentloaded")
        page.locator("#tabs > .tab-nav button", has_text="LoRA Workshop").click()
        page.locator("#lw-run-name", has_text="No run yet").wait_for()
        assert "lora-workshop-demo" in page.locator("#lw-checkpoint").inner_text()
        assert page.evaluate(START_IN_PAGE, [f".{API}/start", settings]) == 401  # the page's cookie is for looking only
        webui.password = f"{USER}:{PASSWORD}"
        webui.call(f"{API}/start", {"settings": settings})
        page.locator("#lw-run-name", has_text=NAME).wait_for()
        page.locator("#lw-run-state", has_text="finished").wait_for()
        page.wait_for_function("document.querySelectorAll('#lw-samples .lw-sample img').length === 2")
        page.wait_for_function("[...document.querySelectorAll('.lw-sample img')].every((image) => image.naturalWidth)")
        assert page.locator("#lw-control-error").inner_text() == ""
        assert [url for url in refused if not url.endswith("/start")] == []
        browser.close()
        for file in webui.networks.glob(f"{NAME}*"):
            file.unlink()


@pytest.fixture(scope="module")
def without_page(another_webui: Callable[..., Any]) -> Iterator[WebUI]:
    with another_webui("--nowebui", "--api-auth", f"{USER}:{PASSWORD}") as started:
        started.password = f"{USER}:{PASSWORD}"
        yield started
        for file in started.networks.glob(f"{NAME}*"):
            file.unlink()


def test_the_api_asks_for_its_password(without_page: WebUI) -> None:
    webui = without_page
    assert every_answer(webui) == {401}
    for wrong in (f"{USER}:wrong", f"{USER}:", ":", "nobody:"):
        webui.password = wrong
        with pytest.raises(RuntimeError, match="401"):
            webui.call(f"{API}/status")
    webui.password = f"{USER}:{PASSWORD}"
    assert webui.call(f"{API}/status")["checkpoint"]["architecture"] == "SD1"


def test_without_a_page_everything_else_is_there(without_page: WebUI, tmp_path: Path) -> None:
    """Training, the tags of what was trained, and the axes."""
    webui = without_page
    bare = webui.generate("a thing").pictures[0]
    run = start(webui, draw_dataset(tmp_path / "pictures"), NAME, learning_rate=3e-2)
    assert ended(webui, run)["state"] == "finished"
    half = f"a thing <lora:{NAME}:0.25><lora:{NAME}:0.25>"  # adding up is ours
    assert not np.array_equal(webui.generate(half).pictures[0], bare)
    assert np.array_equal(webui.generate(half).pictures[0], webui.generate(f"a thing <lora:{NAME}:0.5>").pictures[0])
    assert np.array_equal(webui.generate("a thing").pictures[0], bare)
    script = next(each for each in webui.call("/sdapi/v1/script-info") if each["name"] == "x/y/z plot")
    assert "[LoRA] Epoch" in script["args"][0]["choices"]


def test_tags_work_where_the_builtin_is_disabled(another_webui: Callable[..., Any], tmp_path: Path) -> None:
    with another_webui(settings={"disabled_extensions": ["Lora"]}) as webui:
        try:
            bare = webui.generate("a thing").pictures[0]
            run = start(webui, draw_dataset(tmp_path / "pictures"), NAME, learning_rate=3e-2)
            assert ended(webui, run)["state"] == "finished"
            tagged = webui.generate(f"a thing <lora:{NAME}:1>")
            assert not np.array_equal(tagged.pictures[0], bare) and f"{NAME}: " in tagged.infotexts[0]
            assert np.array_equal(webui.generate(f"a thing <lyco:{NAME}:1>").pictures[0], tagged.pictures[0])
            webui.reload_ui()
            assert np.array_equal(webui.generate(f"a thing <lora:{NAME}:1>").pictures[0], tagged.pictures[0])
            assert np.array_equal(webui.generate("a thing").pictures[0], bare)
            assert "Traceback" not in webui.log()
        finally:
            for file in webui.networks.glob(f"{NAME}*"):
                file.unlink()
