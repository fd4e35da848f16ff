"""Who may ask the routes inside the WebUI, for each way in which it can be started."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import Depends, FastAPI
from fastapi.testclient import TestClient
from httpx import Response

from lora_ext.host.webui.authentication import PAGE_KEY, make_authentication, users_of

GRADIO = SimpleNamespace(auth={"anna": "page"}, tokens={"t0ken": "anna"})
OPEN = SimpleNamespace(auth=None, tokens={})
API_ONLY = SimpleNamespace()


def answer_of(app: object, api_auth: str | None, method: str = "GET", **request: Any) -> Response:
    """The answer to a request to a WebUI of this kind."""
    program = FastAPI()

    @program.api_route("/route", methods=["GET", "POST"], dependencies=[Depends(make_authentication(app, api_auth))])
    def route() -> None:
        pass

    return TestClient(program).request(method, "/route", **request)


def answer(app: object, api_auth: str | None, **request: Any) -> int:
    """Its status."""
    return int(answer_of(app, api_auth, **request).status_code)


@pytest.mark.parametrize(
    ("app", "api_auth", "cookies", "auth", "expected"),
    [
        (OPEN, None, {}, None, 200),
        (API_ONLY, None, {}, None, 200),
        (GRADIO, None, {}, None, 401),
        (GRADIO, None, {"access-token": "wrong"}, None, 401),
        (GRADIO, None, {"access-token": "t0ken"}, None, 200),
        (GRADIO, None, {"access-token-unsecure": "t0ken"}, None, 200),
        (GRADIO, None, {}, ("anna", "page"), 200),
        (GRADIO, None, {}, ("anna", "other"), 401),
        (GRADIO, "bob:api", {"access-token": "t0ken"}, None, 200),
        (GRADIO, "bob:api", {}, ("bob", "api"), 200),
        (GRADIO, "bob:api", {}, ("anna", "page"), 401),
        (OPEN, "bob:api", {}, None, 401),
        (OPEN, "bob:api", {}, ("bob", "api"), 200),
        (OPEN, "bob:api", {"access-token": "t0ken"}, None, 401),
        (API_ONLY, "bob:api", {}, ("bob", ""), 401),
        (API_ONLY, "bob:api,eve:two", {}, ("eve", "two"), 200),
    ],
)
def test_who_is_let_in(
    app: object, api_auth: str | None, cookies: dict[str, str], auth: tuple[str, str] | None, expected: int
) -> None:
    assert answer(app, api_auth, cookies=cookies, auth=auth) == expected


@pytest.mark.parametrize("header", ["Basic", "Basic !!!", "Basic /w==", "Bearer t0ken", ""])
def test_a_header_that_is_none_is_refused(header: str) -> None:
    assert answer(GRADIO, None, headers={"Authorization": header}) == 401


@pytest.mark.parametrize(("app", "api_auth"), [(OPEN, "bob:api"), (GRADIO, None), (GRADIO, "bob:api")])
def test_the_key_of_the_page_opens(app: object, api_auth: str | None) -> None:
    key, cookie = {"X-LoRA-Workshop-Key": PAGE_KEY}, {"lora-workshop-key-7860": PAGE_KEY}
    assert answer(app, api_auth, headers=key) == answer(app, api_auth, headers=key, method="POST") == 200
    assert answer(app, api_auth, cookies={"lora-workshop-key-7861": "of another", **cookie}) == 200
    assert answer(app, api_auth, cookies=cookie, method="POST") == 401  # a cookie is sent unasked: looking only
    for wrong in (PAGE_KEY[:-1], PAGE_KEY.swapcase(), "", "schlüssel".encode()):
        assert answer(app, api_auth, headers={"X-LoRA-Workshop-Key": wrong}) == 401
    assert answer(app, api_auth, cookies={"lora-workshop-key-7860": "wrong"}) == 401


@pytest.mark.parametrize(
    ("request_of", "asks"),
    [
        ({}, True),
        ({"headers": {"sec-fetch-mode": "navigate"}}, True),
        ({"headers": {"sec-fetch-mode": "cors"}}, False),
        ({"headers": {"sec-fetch-mode": "no-cors"}}, False),
        ({"headers": {"X-LoRA-Workshop-Key": "of an earlier start"}}, False),
        ({"cookies": {"lora-workshop-key-7860": "of an earlier start"}}, False),
    ],
)
def test_no_browser_shows_its_login_for_what_a_page_asks(request_of: dict[str, Any], asks: bool) -> None:
    refused = answer_of(OPEN, "bob:api", **request_of)
    assert refused.status_code == 401 and ("www-authenticate" in refused.headers) is asks


def test_passwords_may_hold_colons() -> None:
    assert users_of("bob:a:b,eve:two") == {"bob": "a:b", "eve": "two"}
    assert users_of(None) == users_of("") == {}
