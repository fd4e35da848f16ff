"""gradio's page made self-sufficient: nothing from other servers, and our style and script in it."""

from __future__ import annotations

import re

_FOREIGN = re.compile(
    r"<link\b[^>]*\bhref=\"https?://[^>]*>|<script\b[^>]*\bsrc=\"https?://[^>]*>\s*</script>", re.IGNORECASE
)
_OWN = (
    '<link rel="icon" href="data:,">'
    '<link rel="stylesheet" href="lora-workshop/style.css">'
    "<style>footer { display: none !important; }</style>"
    '<script defer src="lora-workshop/lora_workshop.js"></script>'
)


def localised(page: str) -> str:
    """The page without links and scripts of other servers, with ours at the end of its head."""
    return _FOREIGN.sub("", page).replace("</head>", f"{_OWN}</head>", 1)
