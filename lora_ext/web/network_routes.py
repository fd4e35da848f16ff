"""Routes for network files: their list, one's card, and what a person changes of it."""

from __future__ import annotations

import base64
import binascii
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Response
from pydantic import BaseModel

from lora_ext.jobs.runner import JobRunner
from lora_ext.networks.card_files import edit_words, write_cover
from lora_ext.networks.file import NetworkHeader, scan_network
from lora_ext.networks.listing import NetworkEntry, list_networks, network_at
from lora_ext.networks.metadata_edit import edit_metadata
from lora_ext.protocols import Host, UserError
from lora_ext.web.network_card import network_card
from lora_ext.web.pictures import THUMBNAIL, picture_url

_LONGEST_PICTURE = 32 << 20  # characters


class WordsBody(BaseModel):
    """Words beside a network's file by key."""

    path: str
    values: dict[str, Any]


class MetadataBody(BaseModel):
    """Metadata in a network's file by key; null or an empty text takes a key away."""

    path: str
    values: dict[str, str | None]


class CoverBody(BaseModel):
    """A picture as base64, or as a data address."""

    path: str
    picture: str


def add_network_routes(router: APIRouter, runner: JobRunner, host: Host) -> None:
    """The routes, among the others of `router`; no path leads out of the host's folders of networks."""

    def named(path: str) -> Path:
        return network_at(path, host.folders().networks)

    @router.get("/networks")
    def networks(response: Response) -> dict[str, Any]:
        """Every network file, and the folders that were searched."""
        response.headers["Cache-Control"] = "no-store"
        folders = host.folders().networks
        missing = [f"{folder}: there is no such folder" for folder in folders if not folder.is_dir()]
        found = [entry_as_json(entry) for entry in list_networks(folders)]
        return {"networks": found, "folders": [str(folder) for folder in folders], "notes": missing}

    @router.get("/network")
    def network(path: str, response: Response) -> dict[str, Any]:
        """A network's card as HTML, and its metadata."""
        response.headers["Cache-Control"] = "no-store"
        return _card(named(path))

    @router.post("/network/words")
    def words(body: WordsBody) -> dict[str, Any]:
        """Set words of a network's card."""
        path = named(body.path)
        edit_words(path, body.values)
        return _card(path)

    @router.post("/network/metadata")
    def metadata(body: MetadataBody) -> dict[str, Any]:
        """Set metadata in a network's file."""
        path = named(body.path)
        refuse_in_training(path, runner)
        edit_metadata(path, {key: value or None for key, value in body.values.items()})
        return _card(path)

    @router.post("/network/cover")
    def cover(body: CoverBody) -> dict[str, Any]:
        """Set a network's picture."""
        path = named(body.path)
        write_cover(path, _decoded(body.picture))
        return _card(path)


def entry_as_json(entry: NetworkEntry) -> dict[str, Any]:
    """An entry of the list as JSON values, with the address of its picture."""
    return {
        "name": entry.path.stem,
        "path": str(entry.path),
        "folder": entry.folder,
        "size": entry.size,
        "changed": entry.changed,
        "picture": _cover_address(entry.cover),
    }


def _cover_address(cover: Path | None) -> str:
    try:
        return picture_url(cover, THUMBNAIL) if cover is not None else ""
    except OSError:
        return ""  # a link that leads nowhere, or a picture that was deleted just now


def _card(path: Path) -> dict[str, Any]:
    header = _header(path)
    return {"html": network_card(path, header), "metadata": header.metadata if header is not None else {}}


def _header(path: Path) -> NetworkHeader | None:
    try:
        return scan_network(path)
    except UserError:
        return None  # the card says so


def refuse_in_training(path: Path, runner: JobRunner) -> None:
    """Raise UserError for a file of a run that goes on, which may be replaced or deleted at any time.

    A folder is refused where one of the run's files lies in it.
    """
    record = runner.status().record
    if record is not None and record.active and record.owns(path):
        what = f"{path} holds files of" if path.is_dir() else f"{path.name} belongs to"
        raise UserError(f"{what} {record.name}, which is in training: wait until that has ended, or take another name")


def _decoded(picture: str) -> bytes:
    text = picture.partition(",")[2] if picture.startswith("data:") else picture
    if len(text) > _LONGEST_PICTURE:
        raise UserError(f"the picture has {len(text):,} characters; allowed are {_LONGEST_PICTURE:,}: make it smaller")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise UserError(f"the picture is no base64 text ({error})") from error
