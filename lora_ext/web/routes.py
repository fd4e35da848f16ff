"""The program's HTTP routes: start a run, ask how it goes, control it, look at datasets and pictures.

Every route asks the injected `authenticate` first and refuses pages of other sites. What a person can put right is
answered as 400 with {"error": …, "problems": […]}.

How a run goes on and its control are answered in the event loop: the server's worker threads may all be waiting for the
end of that very run, with pictures or settings that somebody has asked for. What reads folders is left to a worker.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse
from pydantic import BaseModel

from lora_ext.config.toml_files import read_config
from lora_ext.config.train_config import flat_values, make_config
from lora_ext.jobs.resumable import state_to_resume
from lora_ext.jobs.runner import JobRunner
from lora_ext.jobs.samples_file import SavedSample
from lora_ext.jobs.steps_file import BANDS
from lora_ext.protocols import Host, UserError
from lora_ext.web.chart import Measurement, loss_chart
from lora_ext.web.checkpoint_line import checkpoint_line
from lora_ext.web.form_routes import add_form_routes
from lora_ext.web.network_routes import add_network_routes
from lora_ext.web.pictures import ROUTES, SAMPLE_THUMBNAIL, check_signature, media_type, picture_url, thumbnail
from lora_ext.web.planning import PlanningDesk, plan_as_json
from lora_ext.web.preset_routes import add_preset_routes
from lora_ext.web.requests import EscapedJSONResponse, UserErrorRoute, refuse_other_sites
from lora_ext.web.tool_routes import add_tool_routes

_NEVER_STORE = {"Cache-Control": "no-store"}
_PICTURE_SUFFIXES = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp"}


class SettingsBody(BaseModel):
    """Settings by name, as in a TOML file without its tables."""

    settings: dict[str, Any]


class RunBody(BaseModel):
    """Which run is meant."""

    id: str


class ResumeBody(RunBody):
    """Which run is to go on; `load_checkpoint` loads its checkpoint first where another one is loaded."""

    load_checkpoint: bool = False


def make_router(
    runner: JobRunner, host: Host, authenticate: Callable[[Request], None], desk: PlanningDesk | None = None
) -> APIRouter:
    """The routes under `lora-workshop/api`. `authenticate` raises HTTPException, and must not block."""

    async def check(request: Request) -> None:
        authenticate(request)
        refuse_other_sites(request)

    router = APIRouter(
        prefix=f"/{ROUTES}",
        route_class=UserErrorRoute,
        default_response_class=EscapedJSONResponse,
        dependencies=[Depends(check)],
        tags=["LoRA Workshop"],
    )
    planning = desk or PlanningDesk(host)
    _add_planning(router, runner, planning)
    add_form_routes(router, runner, planning)
    add_preset_routes(router, host)
    add_network_routes(router, runner, host)
    add_tool_routes(router, runner, host)
    _add_runs(router, runner, host)
    _add_control(router, runner)
    _add_pictures(router)
    return router


def _add_planning(router: APIRouter, runner: JobRunner, desk: PlanningDesk) -> None:
    @router.post("/plan")
    def plan(body: SettingsBody) -> dict[str, Any]:
        """The dataset's report and the steps and files of a run with these settings."""
        return plan_as_json(*desk.plan(make_config(body.settings), fresh=True))

    @router.get("/dataset")
    def dataset(path: str) -> dict[str, Any]:
        """The report of a folder of pictures, with the other settings at their defaults."""
        report: dict[str, Any] = desk.look(make_config({"train_data_dir": path})).report.to_dict()
        return report

    @router.post("/start")
    def start(body: SettingsBody) -> dict[str, Any]:
        """Start a run, or queue it behind the one that goes on."""
        config = make_config(body.settings)
        desk.check_paths(config)
        return runner.start(config).as_json()


def _add_runs(router: APIRouter, runner: JobRunner, host: Host) -> None:
    @router.get("/status")
    async def status(response: Response, run: str | None = None) -> dict[str, Any]:
        """How a run goes on (the present or latest one without an id), and what is loaded."""
        response.headers.update(_NEVER_STORE)
        info = host.checkpoint_info()
        checkpoint = {**asdict(info), "line": checkpoint_line(info)}
        found = runner.status() if run is None else await run_in_threadpool(runner.status, run)  # an old one is read
        problem = host.live_network_problem() if found.live_network else ""
        ended = found.record if found.record is not None and not found.record.active else None
        state = await run_in_threadpool(state_to_resume, ended) if ended is not None else ""  # it looks into folders
        return {**found.as_json(), "live_network_problem": problem, "state_to_resume": state, "checkpoint": checkpoint}

    @router.get("/runs")
    def runs(response: Response) -> dict[str, Any]:
        """All runs, the newest first, and what lies among them and is no run."""
        response.headers.update(_NEVER_STORE)
        registry = runner.registry
        told = [{**record.as_json(), "state_to_resume": state_to_resume(record)} for record in registry.records()]
        return {"runs": told, "notes": registry.notes()}

    @router.get("/run/{run_id}")
    def run(run_id: str, response: Response) -> dict[str, Any]:
        """A run's record, its settings, the loss of each step, and the state that it can go on from."""
        response.headers.update(_NEVER_STORE)
        record = runner.registry.record(run_id)
        losses = [[step.step, step.loss] for step in runner.registry.steps(run_id)]
        settings = flat_values(read_config(runner.registry.config_path(run_id)))
        run = {**record.as_json(), "state_to_resume": state_to_resume(record)}
        return {"run": run, "settings": settings, "losses": losses}

    @router.get("/run/{run_id}/samples")
    def samples(run_id: str, response: Response) -> dict[str, Any]:
        """The sample pictures of a run, with their addresses."""
        response.headers.update(_NEVER_STORE)
        return {"samples": [sample_as_json(sample) for sample in runner.registry.samples(run_id)]}

    @router.get("/run/{run_id}/chart")
    def chart(run_id: str) -> Response:
        """The losses of a run, and those of its held-out pictures, as SVG to be put into a page."""
        registry = runner.registry
        record, steps = registry.record(run_id), registry.steps(run_id)
        points = [(step.step, step.loss) for step in steps if step.loss is not None]
        bands = {band: [(step.step, step.bands[band]) for step in steps if band in step.bands] for band in BANDS}
        measured = [Measurement(each.step, each.epoch, each.loss, each.best) for each in registry.validations(run_id)]
        chart = loss_chart(points, record.total_steps, bands, measured)
        return Response(chart, media_type="image/svg+xml", headers=_NEVER_STORE)


def _add_control(router: APIRouter, runner: JobRunner) -> None:
    @router.post("/stop")
    async def stop(body: RunBody) -> dict[str, Any]:
        """End the run after its present step and keep what is trained."""
        return runner.stop(body.id).as_json()

    @router.post("/cancel")
    async def cancel(body: RunBody) -> dict[str, Any]:
        """End the run after its present step and write nothing more."""
        return runner.cancel(body.id).as_json()

    @router.post("/pause")
    async def pause(body: RunBody) -> dict[str, Any]:
        """Give the checkpoint back after the present step; prompts may use what is trained so far meanwhile."""
        return runner.pause(body.id).as_json()

    @router.post("/resume")
    async def resume(body: ResumeBody) -> dict[str, Any]:
        """Let a paused run go on."""
        return runner.resume(body.id, body.load_checkpoint).as_json()

    @router.post("/save")
    async def save(body: RunBody) -> dict[str, Any]:
        """Write a file after the present step and go on."""
        return runner.save_now(body.id).as_json()

    @router.post("/sample")
    async def sample(body: RunBody) -> dict[str, Any]:
        """Draw the samples after the present step and go on."""
        return runner.sample_now(body.id).as_json()


def sample_as_json(sample: SavedSample) -> dict[str, Any]:
    """A sample as JSON values: what is known of it, its file's name, and the addresses of picture and thumbnail."""
    path = sample.path
    addresses = {"url": picture_url(path), "thumbnail": picture_url(path, SAMPLE_THUMBNAIL)}
    return {**asdict(sample), "path": str(path), **addresses}


def _add_pictures(router: APIRouter) -> None:
    @router.get("/picture")
    def picture(path: str, size: int, changed: int, key: str) -> Response:
        """A picture that the program itself has shown; `size` 0 is the file, otherwise the longest side."""
        check_signature(path, size, changed, key)
        file = Path(path)
        if not file.is_file():
            raise UserError(f"{path}: this picture is no longer there")
        if size:
            small = thumbnail(file, size, changed)
            return Response(small, media_type=media_type(small), headers={"Cache-Control": "private, max-age=86400"})
        kind = _PICTURE_SUFFIXES.get(file.suffix.lower())
        if kind is None:
            raise UserError(f"{path} is not a picture")
        return FileResponse(file, media_type=kind, headers={"Cache-Control": "private, no-cache"})
