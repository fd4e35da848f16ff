"""The app in the browser: the training tab, a generate panel, a grid panel, and the routes, on this machine only."""

from __future__ import annotations

import logging
import os
import socket
import threading
import webbrowser
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, cast

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported

import gradio as gr
import uvicorn
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import FileResponse

from lora_ext.config.train_config import flat_values
from lora_ext.demo.assets import demo_checkpoint_path
from lora_ext.host.standalone.host import StandaloneHost
from lora_ext.jobs.runner import JobRunner
from lora_ext.protocols import GenerateRequest, UserError
from lora_ext.ui.generate_panel import build_generate_panel
from lora_ext.ui.grid_panel import GridPanel
from lora_ext.ui.page import SCRIPTS, localised
from lora_ext.ui.tab import Panel, make_tab
from lora_ext.web.planning import PlanningDesk
from lora_ext.web.requests import OwnPageOnly, local_requests_only
from lora_ext.web.routes import make_router

ROOT = Path(__file__).resolve().parents[2]
ADDRESS = "127.0.0.1"
_PORTS_TO_TRY = 20
_SMALL_UNET = 100_000_000  # parameters; SD1 has 860 million and draws at 512 px, ours draw at 64


def launch(host: StandaloneHost, runner: JobRunner, port: int = 7861, open_browser: bool = True) -> None:
    """Serve the app until Ctrl-C; a run that goes on then is stopped, and what it has trained is kept.

    Where the port is taken, the next free one is used. `port` 0 is any free one.
    """
    listening = listen(port)
    url = f"http://{ADDRESS}:{listening.getsockname()[1]}"
    app = make_app(host, runner)
    if open_browser:
        app.add_event_handler("startup", lambda: threading.Timer(0.5, webbrowser.open, (url,)).start())
    server = _QuietlyEndingServer(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2))
    print(f"LoRA Workshop is at {url} (Ctrl-C ends it)", flush=True)
    try:
        server.run(sockets=[listening])
    except KeyboardInterrupt:
        print("Ending …", flush=True)
    finally:
        listening.close()
        runner.close()


class _QuietlyEndingServer(uvicorn.Server):
    """A server that cuts off requests of open pages at its end without a traceback for each."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End as uvicorn does."""
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        await super().shutdown(sockets)


def listen(port: int) -> socket.socket:
    """A socket on the port or the next free one after it; UserError where twenty of them are taken."""
    for candidate in range(port, port + _PORTS_TO_TRY):
        listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        if os.name != "nt":  # there it would let two programs share a port
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((ADDRESS, candidate))
        except OSError:
            listening.close()
            continue
        listening.listen()
        return listening
    raise UserError(f"ports {port} to {port + _PORTS_TO_TRY - 1} are all taken: give another one with --port")


def make_app(host: StandaloneHost, runner: JobRunner) -> FastAPI:
    """The app with its page at / and its routes at /lora-workshop/api."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.include_router(make_router(runner, host, local_requests_only, PlanningDesk(host)))

    @app.get("/lora-workshop/{name}")
    def asset(name: str) -> Response:
        files = {"style.css": ROOT / "style.css", **{name: ROOT / "javascript" / name for name in SCRIPTS}}
        if name not in files:
            raise HTTPException(status_code=404)
        return FileResponse(files[name], headers={"Cache-Control": "no-cache"})

    app.middleware("http")(_serve_local_page)
    app.add_middleware(OwnPageOnly)
    return cast(FastAPI, gr.mount_gradio_app(app, make_page(host, runner), path="/"))


def make_page(host: StandaloneHost, runner: JobRunner) -> gr.Blocks:
    """The whole page."""
    start, defaults = _starting_values(host)
    grid = GridPanel(host, runner)
    panels = (
        Panel("Generate", lambda _: build_generate_panel(host, runner, start)),
        Panel("Grid", lambda tab: grid.build(tab, start)),
    )
    tab = make_tab(host, panels, defaults=defaults, program="standalone")
    with gr.Blocks(theme=_theme(), title="LoRA Workshop", analytics_enabled=False) as page:
        gr.HTML('<h1 class="lw-title">LoRA Workshop</h1>', elem_id="lw-title")
        tab.render()
    page.queue(concurrency_count=2, api_open=False)
    return page


def picture_size(host: StandaloneHost) -> int:
    """Side of a picture that the checkpoint draws well, in pixels."""
    parameters = sum(parameter.numel() for parameter in host.loaded.checkpoint.unet.parameters())
    return 64 if parameters < _SMALL_UNET else 512


def _starting_values(host: StandaloneHost) -> tuple[GenerateRequest, Mapping[str, Any]]:
    """(a picture, settings that differ from the declared defaults) for a page that has had no run yet."""
    from lora_ext.demo.judge import PROMPT, Judge
    from lora_ext.demo.run import demo_config

    try:
        if host.loaded.checkpoint.name == demo_checkpoint_path().stem:
            return Judge(host, "").request(PROMPT), flat_values(demo_config())
    except UserError:  # a copy without the demo's files needs no values for them
        pass
    size = picture_size(host)
    small = {"resolution": str(size), "min_bucket_reso": 32, "bucket_reso_steps": 8}
    return GenerateRequest("", width=size, height=size), {} if size == 512 else small


def _theme() -> gr.themes.Base:
    """Colours and the system's own letters: nothing is fetched from elsewhere."""
    return gr.themes.Default(
        primary_hue=gr.themes.colors.indigo,
        neutral_hue=gr.themes.colors.slate,
        font=["system-ui", "Segoe UI", "Roboto", "sans-serif"],
        font_mono=["ui-monospace", "Consolas", "monospace"],
    )


async def _serve_local_page(request: Request, call_next: Any) -> Response:
    """Serve gradio's page without what it would fetch from elsewhere, and with our style and script."""
    response: Response = await call_next(request)
    if request.url.path != "/" or not response.headers.get("content-type", "").startswith("text/html"):
        return response
    chunks = cast(AsyncIterator[bytes], response.body_iterator)  # type: ignore[attr-defined]
    page = localised((b"".join([chunk async for chunk in chunks])).decode("utf-8"))
    kept = {key: value for key, value in response.headers.items() if key != "content-length"}
    return Response(page, status_code=response.status_code, headers=kept)
