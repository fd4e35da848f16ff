"""Latents kept in files beside the pictures, for the next run on them."""

from __future__ import annotations

from collections.abc import Iterable

from lora_ext.checkpoint.picture_encoder import PictureEncoder, Posterior
from lora_ext.dataset.images import content_hash
from lora_ext.dataset.pictures import Picture
from lora_ext.dataset.tensor_cache import TensorCache, delete_leftovers
from lora_ext.protocols import Events


class LatentFiles:
    """Posteriors by the picture's content, its view and the VAE's weights.

    The posterior is kept, not a draw from it: the draw depends on the run's seed.
    """

    def __init__(self, pictures: Iterable[Picture], encoder: PictureEncoder, events: Events) -> None:
        self._vae = encoder.weights_hash()
        self._cache = TensorCache("latents", lambda text: events.message("warning", text))
        for folder in {picture.path.parent for picture in pictures}:
            delete_leftovers(folder)

    def read(self, picture: Picture, flipped: bool) -> Posterior | None:
        """The posterior of one picture, batch 1; None where it has to be encoded."""
        if not picture.content_hash:
            return None
        found = self._cache.read(picture.path.parent, self._key(picture, flipped))
        return None if found is None else Posterior(found["mean"][None], found["logvar"][None])

    def write(self, picture: Picture, flipped: bool, posterior: Posterior) -> None:
        """Keep the posterior of one picture, batch 1; one whose file has changed since it was looked at is left out."""
        if content_hash(picture.path) != picture.content_hash:
            return
        tensors = {"mean": posterior.mean[0].contiguous(), "logvar": posterior.logvar[0].contiguous()}
        self._cache.write(picture.path.parent, self._key(picture, flipped), tensors)

    def _key(self, picture: Picture, flipped: bool) -> dict[str, str]:
        return {"content": picture.content_hash, "view": repr(picture.plain(flipped)), "vae": self._vae}
