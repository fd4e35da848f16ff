"""Starts LoRA Workshop: makes `.venv` beside this file, installs the pinned packages once, then runs the command.

    python run.py demo          python run.py ui          python run.py --help

Standard library only. Python 3.10 and 3.11, on Linux, Windows and macOS.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
INSTALLED = VENV / "lora-workshop-installed"
INSTALLING = VENV / "lora-workshop-installing"
CONSTRAINTS = ROOT / "constraints.txt"
CUDA_CONSTRAINTS = ROOT / "constraints-cuda.txt"
SUPPORTED = ((3, 11), (3, 10))

HELP = """\
usage: python run.py [--torch-index URL] COMMAND [options]

  demo          train on the demo pictures and draw the epoch x weight grid (about three minutes on two cores)
  ui            open the app in the browser: train, generate, compare
  train         train a network on your own pictures
  generate      render pictures, with <lora:name:weight> in the prompt
  grid          compare a network's epochs and weights in one picture
  inspect       tell what a network or checkpoint file holds
  export-demo   put the demo checkpoint into a WebUI's folders: export-demo WEBUI_DIR

  bench         measure training, rendering and switching of networks
  test, lint    the project's own tests (pytest options may follow) and checks

Options that may stand before the command:
  --torch-index URL   install torch from this package index, for a GPU or driver that the default does not suit;
                      PyTorch's "Get started" page shows the address. Remembered until another is given;
                      "default" goes back.

`python run.py COMMAND --help` explains each. The first start installs everything into .venv beside run.py (some
minutes, and a connection); later starts need neither.
"""

HOW_TO_GET_PYTHON = """\
Install Python 3.11 next to the one you have, then start again:
  Windows   winget install Python.Python.3.11     (or the installer from python.org), then: py -3.11 run.py ...
  macOS     brew install python@3.11              (or the installer from python.org), then: python3.11 run.py ...
  Linux     your distribution's python3.11 and python3.11-venv, or: uv python install 3.11, then: python3.11 run.py ...
"""


class InstallError(Exception):
    """The environment could not be made; the message says what to do."""


def main(argv: list[str]) -> int:
    """Prepare the environment, run the command in it, and return its exit code."""
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0
    if sys.version_info[:2] not in SUPPORTED:
        return run_with_other_python(argv)
    try:
        index, command = split_options(argv)
        prepare_environment(index)
    except InstallError as error:
        print(f"run.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nrun.py: interrupted; the next start finishes the installation.", file=sys.stderr)
        return 130
    return run_in_environment(command)


def split_options(argv: list[str]) -> tuple[str | None, list[str]]:
    """The `--torch-index` before the command (None where there is none), and the command with its options."""
    index, rest = None, list(argv)
    while rest and rest[0].startswith("-"):
        option = rest.pop(0)
        if option.startswith("--torch-index="):
            index = option.split("=", 1)[1]
        elif option == "--torch-index" and rest:
            index = rest.pop(0)
        else:
            raise InstallError(f"{option}: before the command only --torch-index URL may stand; see run.py --help")
    if not rest:
        raise InstallError("no command given; run.py --help lists them")
    return index, rest


def run_with_other_python(argv: list[str]) -> int:
    """Start again with a Python 3.10 or 3.11 of this machine, or say how to get one."""
    for major, minor in SUPPORTED:
        launcher = ["py", f"-{major}.{minor}"] if os.name == "nt" else [f"python{major}.{minor}"]
        if shutil.which(launcher[0]) and _version_of(launcher) == f"{major}.{minor}":
            return run_and_wait([*launcher, str(Path(__file__).resolve()), *argv])
    present = ".".join(str(part) for part in sys.version_info[:3])
    print(f"run.py: LoRA Workshop needs Python 3.10 or 3.11; this is {present}.\n{HOW_TO_GET_PYTHON}", file=sys.stderr)
    return 2


def _version_of(launcher: list[str]) -> str:
    """The "3.11" of a Python on this machine, or nothing where it does not start."""
    ask = [*launcher, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
    answer = subprocess.run(ask, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False)
    return answer.stdout.decode("ascii", "replace").strip()


def venv_python() -> Path:
    """The environment's interpreter."""
    return VENV / "Scripts" / "python.exe" if os.name == "nt" else VENV / "bin" / "python"


def stamp_for(torch_index: str) -> str:
    """What a finished installation leaves behind; any difference means that there is something to install.

    The first line is a digest of the pins and the Python version, the second the index that torch came from.
    """
    digest = hashlib.sha256(f"{sys.version_info[0]}.{sys.version_info[1]}".encode())
    for pins in (CONSTRAINTS, CUDA_CONSTRAINTS):
        digest.update(pins.read_bytes().replace(b"\r\n", b"\n"))
    return f"{digest.hexdigest()}\n{torch_index}\n"


def prepare_environment(torch_index: str | None) -> None:
    """Make `.venv` hold exactly the pinned packages; nothing is done where it does already.

    While packages are being installed the stamp has another name, so that an interrupted installation is noticed.
    """
    installed, begun = (path.read_text(encoding="utf-8") if path.is_file() else "" for path in (INSTALLED, INSTALLING))
    present = (installed or begun).splitlines()[1:2]
    index = present[0] if present else ""
    if torch_index is not None:
        index = "" if torch_index == "default" else torch_index
    wanted = stamp_for(index)
    if installed == wanted and venv_python().exists():
        return
    make_venv(afresh=bool(present) and present[0] != index)
    INSTALLED.unlink(missing_ok=True)
    INSTALLING.write_text(wanted, encoding="utf-8", newline="\n")
    install_packages(index)
    os.replace(INSTALLING, INSTALLED)


def make_venv(afresh: bool) -> None:
    """An environment with this Python, in place of a broken one, one with another Python, or any if `afresh`."""
    wanted = f"{sys.version_info[0]}.{sys.version_info[1]}"
    if not afresh and venv_python().exists() and _version_of([str(venv_python())]) == wanted and _has_pip():
        return
    if VENV.exists():
        shutil.rmtree(VENV)
    say(f"Making {VENV} with Python {wanted}")
    made = subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=False)
    if made.returncode or not _has_pip():
        raise InstallError(
            f"{VENV} could not be made. On Debian and Ubuntu the package python{wanted}-venv is needed; elsewhere look "
            "at the message above, and whether the folder can be written to."
        )


def _has_pip() -> bool:
    ask = [str(venv_python()), "-m", "pip", "--version"]
    return subprocess.run(ask, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False).returncode == 0


def install_packages(torch_index: str) -> None:
    """torch with what its build brings, then every other pin as it stands.

    Leaving dependencies out of the second call is what keeps pip from looking for other versions: the list is complete.
    """
    pins = CONSTRAINTS.read_text(encoding="utf-8").splitlines()
    pinned_torch = next(pin for pin in pins if pin.startswith("torch="))
    torch_options = ["--extra-index-url", torch_index] if torch_index else ["-c", str(CUDA_CONSTRAINTS)]
    say("Installing torch (the largest part, once)")
    pip("install", pinned_torch, "-c", str(CONSTRAINTS), *torch_options)
    say("Installing the other packages")
    pip("install", "--no-deps", "-r", str(CONSTRAINTS))


def pip(*arguments: str) -> None:
    """Run the environment's pip; what it says goes to standard error."""
    command = [str(venv_python()), "-m", "pip", "--disable-pip-version-check", "--no-input", *arguments]
    if subprocess.run(command, stdout=sys.stderr.fileno(), check=False).returncode:
        raise InstallError(
            "pip could not install the packages; its message stands above. Is there a connection, and space on the "
            "disk? The next start tries again from where this one ended."
        )


def say(text: str) -> None:
    """A line for the person at the terminal; standard output stays the command's own."""
    print(text, file=sys.stderr, flush=True)


def run_in_environment(command: list[str]) -> int:
    """Run `python -m lora_ext COMMAND` in the environment; what is typed as a path stays relative to the caller."""
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    os.environ["PYTHONUTF8"] = "1"
    return run_and_wait([str(venv_python()), "-m", "lora_ext", *command])


def run_and_wait(command: list[str]) -> int:
    """Run a command in place of this process, or, where Windows knows no such thing, wait for it.

    Ctrl-C reaches the command itself in both cases; while waiting, this process leaves it to the command.
    """
    if os.name != "nt":
        sys.stdout.flush()
        os.execvp(command[0], command)
    child = subprocess.Popen(command)
    while True:
        try:
            return child.wait()
        except KeyboardInterrupt:
            continue


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
