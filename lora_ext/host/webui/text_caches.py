"""What the WebUI remembers of encoded prompts from one image to the next."""

from __future__ import annotations

from modules import processing


def reset_text_caches() -> None:
    """Forget it: it is keyed by the prompt's text, which says nothing of a file that was written anew."""
    for kind in (processing.StableDiffusionProcessing, processing.StableDiffusionProcessingTxt2Img):
        for name in ("cached_c", "cached_uc", "cached_hr_c", "cached_hr_uc"):
            cache = getattr(kind, name, None)
            if cache is not None:
                cache[:] = [None, None]
