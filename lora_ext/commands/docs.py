"""`docs`: the pages that are made from the code."""

from __future__ import annotations

import argparse

from lora_ext.commands.develop import SOURCES
from lora_ext.commands.import_settings import write_text
from lora_ext.config.reference import settings_page
from lora_ext.protocols import UserError

PAGE = SOURCES / "docs" / "settings.md"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None."""


def run(options: argparse.Namespace) -> int:
    """Write docs/settings.md."""
    if not PAGE.parent.is_dir():
        raise UserError(f"docs: {SOURCES} holds no docs; this command works in a copy of the repository")
    write_text(PAGE, settings_page())
    print(f"Written: {PAGE}")
    return 0
