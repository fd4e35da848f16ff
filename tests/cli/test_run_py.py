"""run.py: what it installs, when it installs, and what it says where it cannot."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def starter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """run.py as a module whose environment is an empty place, and whose pip only writes down what it is told."""
    spec = importlib.util.spec_from_file_location("run_py", ROOT / "run.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    venv = tmp_path / ".venv"
    monkeypatch.setattr(module, "VENV", venv)
    monkeypatch.setattr(module, "INSTALLED", venv / "installed")
    monkeypatch.setattr(module, "INSTALLING", venv / "installing")
    calls: list[str] = []

    def make_venv(afresh: bool) -> None:
        calls.append("make afresh" if afresh else "make")
        module.venv_python().parent.mkdir(parents=True, exist_ok=True)
        module.venv_python().touch()

    monkeypatch.setattr(module, "make_venv", make_venv)
    monkeypatch.setattr(module, "pip", lambda *arguments: calls.append("pip " + " ".join(arguments)))
    module.calls = calls
    yield module


def test_first_start_installs_torch_with_and_the_rest_without_dependencies(starter: ModuleType) -> None:
    starter.prepare_environment(None)
    pins = ROOT / "constraints.txt"
    assert starter.calls == [
        "make",
        f"pip install torch==2.13.0 -c {pins} -c {ROOT / 'constraints-cuda.txt'}",
        f"pip install --no-deps -r {pins}",
    ]


def test_second_start_does_nothing(starter: ModuleType) -> None:
    starter.prepare_environment(None)
    starter.calls.clear()
    starter.prepare_environment(None)
    assert starter.calls == []


def test_interrupted_installation_is_done_again(starter: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(starter, "pip", interrupted)
        starter.prepare_environment("https://example.org/other")
    starter.calls.clear()
    starter.prepare_environment(None)
    assert [call.split()[0] for call in starter.calls] == ["make", "pip", "pip"]
    assert "--extra-index-url https://example.org/other" in starter.calls[1]


def test_changed_pins_are_installed(starter: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    starter.prepare_environment(None)
    starter.calls.clear()
    changed = tmp_path / "constraints.txt"
    changed.write_text((ROOT / "constraints.txt").read_text(encoding="utf-8") + "one-more==1.0\n", encoding="utf-8")
    monkeypatch.setattr(starter, "CONSTRAINTS", changed)
    starter.prepare_environment(None)
    assert len(starter.calls) == 3


def test_another_torch_index_makes_a_new_environment_and_is_remembered(starter: ModuleType) -> None:
    starter.prepare_environment(None)
    starter.calls.clear()
    starter.prepare_environment("https://example.org/cu")
    assert starter.calls[0] == "make afresh"
    assert "-c " + str(ROOT / "constraints-cuda.txt") not in starter.calls[1]
    starter.calls.clear()
    starter.prepare_environment(None)
    assert starter.calls == []
    starter.prepare_environment("default")
    assert starter.calls[0] == "make afresh"
    assert "--extra-index-url" not in starter.calls[1]


def test_options_before_the_command(starter: ModuleType) -> None:
    assert starter.split_options(["train", "--torch-index"]) == (None, ["train", "--torch-index"])
    assert starter.split_options(["--torch-index", "URL", "ui"]) == ("URL", ["ui"])
    assert starter.split_options(["--torch-index=URL", "ui", "--port", "1"]) == ("URL", ["ui", "--port", "1"])
    for wrong in (["--fast", "ui"], ["--torch-index"], ["--torch-index", "URL"]):
        with pytest.raises(starter.InstallError):
            starter.split_options(wrong)


def test_other_python_versions_are_told_what_to_do(
    starter: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(starter, "SUPPORTED", ((9, 1),))
    assert starter.main(["demo"]) == 2
    message = capsys.readouterr().err
    assert "needs Python 3.10 or 3.11; this is " + ".".join(map(str, sys.version_info[:3])) in message
    assert "python3.11" in message and "winget" in message and "brew" in message


def test_help_needs_no_environment(tmp_path: Path) -> None:
    """A copy of the file alone, on any Python that is there."""
    copy = tmp_path / "run.py"
    copy.write_bytes((ROOT / "run.py").read_bytes())
    done = subprocess.run([sys.executable, str(copy), "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    for command in ("demo", "ui", "train", "generate", "grid", "inspect", "export-demo", "lint", "test", "bench"):
        assert command in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.py"]


@pytest.mark.skipif(os.name == "nt", reason="links to an interpreter")
def test_starting_takes_no_time_and_hands_on_the_exit_code(tmp_path: Path) -> None:
    """Against an environment that stands: run.py's own share of a start, and the command's way out."""
    for name in ("run.py", "constraints.txt", "constraints-cuda.txt"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    (tmp_path / "lora_ext").mkdir()
    (tmp_path / "lora_ext" / "__init__.py").write_bytes(b"")
    (tmp_path / "lora_ext" / "__main__.py").write_text("import sys; sys.exit(len(sys.argv))", encoding="utf-8")
    stamp = "import run; run.make_venv(False); run.INSTALLED.write_text(run.stamp_for(''), encoding='utf-8')"
    subprocess.run([sys.executable, "-c", stamp], cwd=tmp_path, check=True, capture_output=True)
    seconds = []
    for _ in range(3):
        begun = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "run.py", "a", "b"], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        seconds.append(time.perf_counter() - begun)
        assert (done.returncode, done.stdout, done.stderr) == (3, "", "")
    assert min(seconds) < 0.5  # two interpreters' starts included


def pins(python: str) -> dict[str, str]:
    """Name → version that constraints.txt gives a Python version on this system."""
    found: dict[str, str] = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            continue
        requirement = Requirement(line)
        (pin,) = requirement.specifier
        assert pin.operator == "==" and "+" not in pin.version, line
        if requirement.marker is None or requirement.marker.evaluate({"python_version": python}):
            name = canonicalize_name(requirement.name)
            assert name not in found, f"{name} stands twice for Python {python}"
            found[name] = pin.version
    return found


def test_both_pythons_have_the_same_packages() -> None:
    only_310 = {"exceptiongroup", "tomli", "six"}
    only_311 = {"lazy-importer"}
    assert set(pins("3.10")) - set(pins("3.11")) == only_310
    assert set(pins("3.11")) - set(pins("3.10")) == only_311


def test_pins_are_complete_and_fit_each_other() -> None:
    """What every pinned package needs is pinned too, in a version that it takes; not so open_clip_torch."""
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    pinned = pins(version)
    wrong = []
    for name in pinned:
        if name == "open-clip-torch":
            continue
        for text in importlib.metadata.requires(name) or []:
            needed = Requirement(text)
            if needed.marker is not None and not needed.marker.evaluate({"extra": ""}):
                continue
            have = pinned.get(canonicalize_name(needed.name))
            from_cuda = name == "torch" and have is None
            if not from_cuda and (have is None or not needed.specifier.contains(have, prereleases=True)):
                wrong.append(f"{name} needs {text}, and {have} is pinned")
    assert not wrong
