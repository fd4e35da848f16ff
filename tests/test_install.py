"""install.py, the WebUI's install step: what it asks pip for, by what is there."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

INSTALL = Path(__file__).resolve().parents[1] / "install.py"


def asked_of_pip(monkeypatch: pytest.MonkeyPatch, torch: str, missing: set[str], python: tuple[int, int]) -> list[str]:
    asked: list[str] = []
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in missing else SimpleNamespace())
    monkeypatch.setattr(importlib.metadata, "version", lambda name: {"torch": torch}[name])
    monkeypatch.setattr(sys, "version_info", (*python, 0))
    monkeypatch.setitem(sys.modules, "launch", SimpleNamespace(run_pip=lambda command, _: asked.append(command)))
    runpy.run_path(str(INSTALL))
    return asked


def test_nothing_is_installed_where_all_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    assert asked_of_pip(monkeypatch, "2.1.2+cu121", set(), (3, 10)) == []


@pytest.mark.parametrize(
    ("torch", "lycoris"),
    [("2.1.2+cu121", "3.4.0"), ("2.3.1", "3.4.0"), ("2.4.0", "4.1.3"), ("2.13.0+cpu", "4.1.3"), ("3.0.0", "4.1.3")],
)
def test_lycoris_is_chosen_by_the_torch_that_is_there(
    monkeypatch: pytest.MonkeyPatch, torch: str, lycoris: str
) -> None:
    assert asked_of_pip(monkeypatch, torch, {"lycoris"}, (3, 11)) == [f"install --no-deps lycoris_lora=={lycoris}"]


def test_a_toml_reader_is_installed_on_python_310_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert asked_of_pip(monkeypatch, "2.1.2", {"tomli"}, (3, 10)) == ["install --no-deps tomli==2.0.1"]
    assert asked_of_pip(monkeypatch, "2.1.2", {"tomli"}, (3, 11)) == []
