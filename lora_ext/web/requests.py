"""What every route has in common: who may ask, from which page, and how an error is told."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from typing import Any
from urllib.parse import urlsplit

from fastapi import HTTPException, Request, Response
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send

from lora_ext.protocols import UserError
from lora_ext.web.form_values import problems_by_field, problems_of

_OWN_SITE = ("same-origin", "none")
_LOCAL_NAMES = ("127.0.0.1", "localhost", "[::1]")


class EscapedJSONResponse(JSONResponse):
    """JSON in ASCII: names of files that are no UTF-8, and halves of UTF-16 pairs, arrive and come back as they are."""

    def render(self, content: Any) -> bytes:
        """The body."""
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii")


class UserErrorRoute(APIRoute):
    """A route whose `UserError`s are answered as 400 with {"error": …, "problems": […], "fields": {…}}."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The route's handler, with the errors of people caught."""
        handle = super().get_route_handler()

        async def handle_user_errors(request: Request) -> Response:
            try:
                return await handle(request)
            except UserError as error:
                return EscapedJSONResponse(error_body(error), status_code=400)

        return handle_user_errors


def error_body(error: UserError) -> dict[str, Any]:
    """What a person is told of an error: the whole text, its problems one by one, and those of each field."""
    problems = problems_of(error)
    return {"error": str(error), "problems": problems, "fields": problems_by_field(problems)}


def refuse_other_sites(request: HTTPConnection) -> None:
    """Answer 403 to a request that a browser sends on behalf of a page of another site.

    Browsers say where a request comes from: by Sec-Fetch-Site, which decides alone, for behind a proxy the names in
    Origin and Host may differ; or, old ones and those on an address without https, by Origin. Programs say neither.
    """
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        if site not in _OWN_SITE:
            raise HTTPException(status_code=403, detail="requests from other sites are refused")
        return
    origin = request.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc not in _own_names(request):
        raise HTTPException(status_code=403, detail=f"requests from {origin} are refused")


def _own_names(request: HTTPConnection) -> set[str]:
    """Names under which the browser may know this program: its own, and what each proxy was asked for."""
    forwarded = request.headers.get("x-forwarded-host", "").split(",")
    return {name.strip() for name in (request.headers.get("host", ""), *forwarded)} - {""}


def local_requests_only(request: HTTPConnection) -> None:
    """Answer 403 to a request that came under another name than this machine's (DNS rebinding)."""
    if request.headers.get("host", "").rsplit(":", 1)[0] not in _LOCAL_NAMES:
        raise HTTPException(status_code=403, detail="this program answers on its own machine only")


class OwnPageOnly:
    """ASGI middleware for a program on this machine: only its own page may talk to it, websockets included.

    Whoever follows a link to the page from elsewhere gets the page.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand the request on, or refuse it."""
        refused = _refusal(HTTPConnection(scope)) if scope["type"] in ("http", "websocket") else None
        if refused is None:
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008})
        else:
            await JSONResponse({"error": refused.detail}, status_code=403)(scope, receive, send)


def _refusal(connection: HTTPConnection) -> HTTPException | None:
    follows_link = connection.url.path == "/" and connection.headers.get("sec-fetch-mode") == "navigate"
    try:
        local_requests_only(connection)
        if not follows_link:
            refuse_other_sites(connection)
    except HTTPException as refused:
        return refused
    return None
