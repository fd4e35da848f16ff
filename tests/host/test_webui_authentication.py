"""Who may ask the routes inside the WebUI, for each way in which it can be started."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from fastapi import Depends, FastAPI
from fastapi.testclient import TestClient

from lora_ext.host.webui.authentication import make_authentication, users_of

GRADIO = SimpleNamespace(auth={"anna": "page"}, tokens={"t0ken": "anna"})
OPEN = SimpleNamespace(auth=None, tokens={})
API_ONLY = SimpleNamespace()


def answer(app: object, api_auth: str | None, **request: object) -> int:
    """The status of a request to a WebUI of this kind."""
    program = FastAPI()

    @program.get("/route", dependencies=[Depends(make_authentication(app, api_auth))])
    def route() -> None:
        pass

    return int(TestClient(program).get("/route", **request).status_code)


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


def test_passwords_may_hold_colons() -> None:
    assert users_of("bob:a:b,eve:two") == {"bob": "a:b", "eve": "two"}
    assert users_of(None) == users_of("") == {}
