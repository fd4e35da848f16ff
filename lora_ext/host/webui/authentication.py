"""Who may ask our routes: whoever may use the WebUI's page or its API."""

from __future__ import annotations

import base64
import binascii
import secrets
from collections.abc import Callable, Mapping
from typing import Any

from fastapi import HTTPException, Request

_COOKIES = ("access-token", "access-token-unsecure")
_ASK = {"WWW-Authenticate": 'Basic realm="LoRA Workshop"'}


def make_authentication(app: Any, api_auth: str | None) -> Callable[[Request], None]:
    """A FastAPI dependency that answers 401 to whom the WebUI would ask for a name and a password.

    With `--gradio-auth` the page's cookie is enough, so that the page's own requests work with and without `--api`;
    `--api-auth` (`api_auth`) takes its own names by HTTP Basic. With either of them, one of both has to be right; with
    neither nothing is asked. `app` is gradio's, or FastAPI's own under `--nowebui`.
    """
    api_users = users_of(api_auth)

    def authenticate(request: Request) -> None:
        page_users = getattr(app, "auth", None)
        if not api_users and page_users is None:
            return
        if page_users is not None and _has_cookie(request, app.tokens):
            return
        known = api_users or (page_users if isinstance(page_users, Mapping) else {})
        if _has_password(request, known):
            return
        raise HTTPException(status_code=401, detail="Not authenticated", headers=_ASK)

    return authenticate


def users_of(argument: str | None) -> dict[str, str]:
    """Passwords by name of `--api-auth name:password,name:password`."""
    pairs = (entry.partition(":") for entry in (argument or "").split(",") if ":" in entry)
    return {name: password for name, _, password in pairs}


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
    return expected is not None and secrets.compare_digest(password.encode(), expected.encode())
