"""What the host is told of a run: its files are there, what their cards show, and a pause's network."""

from __future__ import annotations

import io
from pathlib import Path

from lora_ext.config.train_config import TrainConfig
from lora_ext.grid.png import infotext_chunk
from lora_ext.networks.file import scan_network
from lora_ext.networks.sidecar import write_sidecar
from lora_ext.protocols import Events, GeneratedImage, Host, PauseReport, Sample, SavedNetwork


def writes_cards(config: TrainConfig, host: Host) -> bool:
    """Whether the files of a run get cards: as the settings say, or else where the host shows them."""
    chosen = config.saving.save_sidecar
    return host.shows_cards if chosen == "auto" else chosen == "yes"


class HostNotices(Events):
    """Tells the host of every file and of a pause's network, writes cards, and passes on what could not be done.

    The picture of a card is the last sample of the first prompt; one of the file's own step takes its place.
    """

    def __init__(self, host: Host, events: Events, cards: bool) -> None:
        self.host = host
        self.events = events
        self.cards = cards
        self._sample: GeneratedImage | None = None
        self._saved: SavedNetwork | None = None
        self._live: str | None = None

    def saved(self, saved: SavedNetwork) -> None:
        """Make the file usable in the host; its failure must not end the run."""
        self._saved = saved
        if self.cards:
            self._write_card(saved.path)
        try:
            self.host.network_saved(saved.path)
        except Exception as error:
            self.events.message("warning", f"{saved.path.name} is written, but {self.host.name} refused it: {error}")

    def sampled(self, sample: Sample) -> None:
        """Remember the picture; the file that was saved at the same step shows it at once."""
        if sample.prompt_number != 0:
            return
        self._sample = sample.image
        if self.cards and self._saved is not None and self._saved.step == sample.step:
            self._write_card(self._saved.path)

    def paused(self, report: PauseReport) -> None:
        """Let prompts use what is trained so far."""
        self._set_live(report.live_name, report.network)

    def resumed(self) -> None:
        """Take that name away again."""
        self.end()

    def end(self) -> None:
        """Take the name of a pause away, where there is one."""
        if self._live is not None:
            self._set_live(self._live, None)

    def _set_live(self, name: str, path: Path | None) -> None:
        self.host.set_live_network(name, path)
        self._live = name if path is not None else None

    def _write_card(self, path: Path) -> None:
        if path.suffix != ".safetensors":
            return  # a .ckpt file says nothing of itself
        try:
            write_sidecar(path, scan_network(path).metadata, _png(self._sample) if self._sample else None)
        except Exception as error:
            self.events.message("warning", f"{path.name} is written, but the card beside it is not: {error}")


def _png(image: GeneratedImage) -> bytes:
    """The picture as the bytes of a PNG file, with its infotext."""
    stream = io.BytesIO()
    image.image.save(stream, "PNG", pnginfo=infotext_chunk(image.infotext))
    return stream.getvalue()
