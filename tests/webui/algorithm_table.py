"""The same network files drawn by the WebUI's built-in Lora and by us, on every kind of base: a table of differences.

`python tests/webui/algorithm_table.py URL WEBUI_DIR` asks a WebUI that runs with the tests' probe extension in it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parent)]

from algorithm_files import ALGORITHMS, write_algorithm
from network_files import difference, weights_of

if TYPE_CHECKING:
    from conftest import WebUI

PROMPT = "a red star"
SMALL = {"width": 64, "height": 64, "steps": 2}
OPTION, OURS, BUILTIN = "lora_workshop_tags", "LoRA Workshop", "built-in"
FOLDER = "of-the-table"
FILES = {name: "lw-" + "".join(letter for letter in name.lower() if letter.isalnum()) for name in ALGORITHMS}
ORDERS = {
    "LoRA, then DoRA": (("LoRA", 0.5), ("DoRA, in", 1.0)),
    "DoRA, then LoRA": (("DoRA, in", 1.0), ("LoRA", 0.5)),
    "LoRA twice": (("LoRA", 0.25), ("LoRA", 0.5)),
}
CASES: dict[str, Sequence[tuple[str, float]]] = {
    **{name: ((name, 1.0),) for name in ALGORITHMS},
    **{f"{name}, half": ((name, 0.5),) for name in ("LoRA", "LoKr", "(IA)³", "diag-OFT", "DoRA, in")},
    **ORDERS,
}
"""What is drawn → networks and multipliers."""


@dataclass(frozen=True)
class Row:
    """Mean differences of pictures in units of 1/255: ours to the built-in's, and ours to the one without networks."""

    case: str
    to_builtin: float
    to_bare: float
    told: tuple[str, ...]
    """What stands under our picture."""


def tags_of(case: str) -> str:
    """The tags of a case."""
    return "".join(f"<lora:{FILES[name]}:{multiplier}>" for name, multiplier in CASES[case])


@contextmanager
def files_written(networks: Path, checkpoint: Path) -> Iterator[None]:
    """A network of each algorithm for a checkpoint in the WebUI's folder."""
    folder = networks / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    weights = weights_of(checkpoint)
    try:
        for name, stem in FILES.items():
            write_algorithm(folder / f"{stem}.safetensors", name, weights)
        yield
    finally:
        for stem in FILES.values():
            (folder / f"{stem}.safetensors").unlink(missing_ok=True)
        folder.rmdir()


def rows(webui: WebUI, checkpoint: Path) -> list[Row]:
    """Every case on the checkpoint that is loaded."""
    with files_written(webui.networks, checkpoint):
        pictures: dict[str, list[np.ndarray]] = {}
        told: list[tuple[str, ...]] = []
        for who in (OURS, BUILTIN):
            webui.set_options(**{OPTION: who})
            pictures[who] = []
            for case in CASES:
                pictures[who].append(webui.generate(f"{PROMPT} {tags_of(case)}", **SMALL).pictures[0])
                if who == OURS:
                    told.append(tuple(webui.call("/lw-probe/tags/comments")))
        webui.set_options(**{OPTION: OURS})
        bare = webui.generate(PROMPT, **SMALL).pictures[0]
    return [
        Row(case, difference(ours, theirs), difference(ours, bare), comments)
        for case, ours, theirs, comments in zip(CASES, pictures[OURS], pictures[BUILTIN], told, strict=True)
    ]


def markdown(tables: dict[str, list[Row]]) -> str:
    """The table: a line a case, a column a base."""
    lines = ["| | " + " | ".join(tables) + " |", "|---" * (len(tables) + 1) + "|"]
    for number, case in enumerate(CASES):
        cells = [f"{table[number].to_builtin:.2f} of {table[number].to_bare:.0f}" for table in tables.values()]
        lines.append(f"| {case} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(url: str, folder: Path) -> None:
    """Print the table for the demo checkpoint and each kind of base."""
    from base_checkpoints import BASES, write_base
    from conftest import WebUI

    webui = WebUI(folder, url)
    checkpoints = folder / "models" / "Stable-diffusion"
    written = [file for kind in BASES for file in write_base(checkpoints, kind)]
    webui.call("/sdapi/v1/refresh-checkpoints", {})
    webui.set_options(show_progress_type="Approx cheap")
    tables = {}
    for name in ("lora-workshop-demo", *(f"lw-base-{kind}" for kind in BASES if kind != "sd2-v")):
        webui.set_options(sd_model_checkpoint=name)
        tables[name] = rows(webui, checkpoints / f"{name}.safetensors")
        for row in tables[name]:
            print(name, row, flush=True)
    webui.set_options(sd_model_checkpoint="lora-workshop-demo")
    for file in written:
        file.unlink()
    print(markdown(tables))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
