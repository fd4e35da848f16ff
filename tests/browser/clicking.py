"""What a person does on the page again and again."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Page


def open_tab(page: Page, title: str) -> None:
    """Open one of the tabs by its title."""
    page.locator("#lw-tabs > .tab-nav button", has_text=title).click()


def fill(page: Page, setting: str, value: str) -> None:
    """Type into the field of a setting, or of a grid, and leave it."""
    field = page.locator(f"#lw-{setting}").locator("input, textarea").first
    field.fill(value)
    field.press("Tab")
