"""Train the demo checkpoint: `python -m tools.train_demo_checkpoint --out FOLDER` from the repository's root.

Both stages continue where a stopped run left off in the same folder; `current.safetensors` there is always the
latest export, `figures.json` what was measured.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from lora_ext.host.standalone.vae import VAE
from tools.demo_diffusion_stage import DiffusionStage, DiffusionTraining, run_diffusion, start_text_encoder
from tools.demo_export import export
from tools.demo_judge import contact_sheet, judge
from tools.demo_vae_stage import DEMO_VAE, VAE_ROUNDS, train_vae


def log(line: str) -> None:
    """Print a line at once, with the time of day."""
    print(time.strftime("%H:%M:%S"), line, flush=True)


def trained_vae(out: Path, seed: int) -> tuple[VAE, dict[str, float]]:
    """The autoencoder of an earlier run in `out`, or a new one."""
    path = out / "vae.pt"
    if path.is_file():
        stored = torch.load(path, weights_only=True)
        vae = VAE(DEMO_VAE)
        vae.load_state_dict(stored["vae"])
        figures: dict[str, float] = stored["figures"]
        return vae.eval(), figures
    vae, figures = train_vae(VAE_ROUNDS, seed, log)
    torch.save({"vae": vae.state_dict(), "figures": figures}, path)
    return vae, figures


def deliver(out: Path, training: DiffusionTraining, vae: VAE, figures: dict[str, Any]) -> None:
    """Export the averaged networks, judge them, and write sheet and figures."""
    unet, text = training.averaged()
    facts = {"lora_workshop.steps": str(training.done), "lora_workshop.seed": str(training.seed)}
    size = export(out / "current.safetensors", unet, vae, text, facts)
    result, pictures = judge(unet, text, vae)
    contact_sheet(pictures, out / f"sheet-{training.done:06d}.png")
    log(f"step {training.done}: {result}, {size} bytes")
    figures["exports"].append({"step": training.done, "bytes": size, **asdict(result)})
    (out / "figures.json").write_text(json.dumps(figures, indent=1), encoding="utf-8", newline="\n")


def main() -> None:
    """Parse the options and run both stages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(".demo-training"), help="folder of state and results")
    parser.add_argument("--steps", type=int, default=DiffusionStage.steps, help="updates of the U-Net")
    parser.add_argument("--text-steps", type=int, default=250, help="updates of the text encoder before that")
    parser.add_argument("--learning-rate", type=float, default=DiffusionStage.learning_rate)
    parser.add_argument("--export-every", type=int, default=400, help="updates between two exports")
    parser.add_argument("--seed", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    vae, vae_figures = trained_vae(options.out, options.seed)
    log(f"vae: {vae_figures}")
    stage = replace(DiffusionStage(), steps=options.steps, learning_rate=options.learning_rate)
    training = DiffusionTraining(stage, options.seed)
    state, figures_path = options.out / "state.pt", options.out / "figures.json"
    figures: dict[str, Any] = {"vae": vae_figures, "stage": asdict(stage), "exports": []}
    if state.is_file():
        training.resume(state)
        figures = json.loads(figures_path.read_text(encoding="utf-8"))
        log(f"resumed at step {training.done}")
    else:
        start_text_encoder(training, options.text_steps, log)
    for done, average in run_diffusion(training, vae, log):
        if done % options.export_every == 0 or done == stage.steps:
            training.save(state)
            figures |= {"loss": average, "seconds": figures.get("seconds", 0.0) + time.monotonic() - started}
            started = time.monotonic()
            deliver(options.out, training, vae, figures)


if __name__ == "__main__":
    main()
