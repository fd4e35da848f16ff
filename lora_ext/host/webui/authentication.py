"""Who may ask our routes: whoever may use the WebUI's page or its API.

The page shows who may see it a key of this process, which its script sends along: so the page works as its own buttons
do, whatever the API asks for. What the browser itself fetches, pictures, brings the key in a cookie.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import secrets
from collections.abc import Callable, Mapping
from typing import Any

from fastapi import HTTPException, Request

_COOKIES = ("access-token", "access-token-unsecure")
_ASK = {"WWW-Authenticate": 'Basic realm="LoRA Workshop"'}
_KEY_HEADER = "x-lora-workshop-key"
_KEY_COOKIE = "lora-workshop-key-"  # and the port: pages of several programs on a machine share their cookies

PAGE_KEY = secrets.token_urlsafe(32)
"""Stands in the tab's HTML, which under `--gradio-auth` is given out after the login only."""


def make_authentication(app: Any, api_auth: str | None) -> Callable[[Request], None]:
    """A FastAPI dependency that answers 401 to whom the WebUI would ask for a name and a password.

    With `--gradio-auth` the page's cookie is enough, so that the page's own requests work with and without `--api`;
    `--api-auth` (`api_auth`) takes its own names by HTTP Basic. With either of them, one of both has to be right; with
    neither nothing is asked. The page's key is as good. `app` is gradio's, or FastAPI's own under `--nowebui`.
    """
    api_users = users_of(api_auth)

    def authenticate(request: Request) -> None:
        page_users = getattr(app, "auth", None)
        if not api_users and page_users is None:
            return
        if _has_page_key(request):
            return
        if page_users is not None and _has_cookie(request, app.tokens):
            return
        known = api_users or (page_users if isinstance(page_users, Mapping) else {})
        if _has_password(request, known):
            return
        raise HTTPException(status_code=401, detail="Not authenticated", headers=None if _of_a_page(request) else _ASK)

    return authenticate


def users_of(argument: str | None) -> dict[str, str]:
    """Passwords by name of `--api-auth name:password,name:password`."""
    pairs = (entry.partition(":") for entry in (argument or "").split(",") if ":" in entry)
    return {name: password for name, _, password in pairs}


def _has_page_key(request: Request) -> bool:
    """Whether the request comes from our page; a cookie, which browsers send unasked, is for looking only."""
    keys = _key_cookies(request) if request.method == "GET" else []
    keys.append(request.headers.get(_KEY_HEADER, ""))
    return any(hmac.compare_digest(key.encode(), PAGE_KEY.encode()) for key in keys)


def _key_cookies(request: Request) -> list[str]:
    return [value for name, value in request.cookies.items() if name.startswith(_KEY_COOKIE)]


def _of_a_page(request: Request) -> bool:
    """Whether a page asks, perhaps one of an earlier start: its browser would show its own login at every poll."""
    mode = request.headers.get("sec-fetch-mode", "navigate")
    return mode != "navigate" or _KEY_HEADER in request.headers or bool(_key_cookies(request))


def _has_cookie(request: Request, tokens: Mapping[str, str]) -> bool:
    return any(request.cookies.get(name) in tokens for name in _COOKIES)


def _has_password(request: Request, users: Mapping[str, str]) -> bool:
    scheme, _, encoded = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "basic":
        return False
    try:
        name, _, password = base64.b64decode(encoded, validate=True).decode("utf-8").partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return False
    expected = users.get(name)
    return expected is not None and hmac.compare_digest(password.encode(), expected.encode())
