"""A checkpoint of SD1's real size, with random weights, trains within 8 GB."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

TRAINING = """
import json, resource, sys
from pathlib import Path
import torch
from lora_ext.config.train_config import make_config
from lora_ext.host.standalone.loader import load_checkpoint
from lora_ext.networks.file import scan_network
from lora_ext.training.trainer import Trainer
torch.set_num_threads(2)
checkpoint = load_checkpoint(Path(sys.argv[1]), torch.device("cpu"), torch.float32).checkpoint
values = dict(
    train_data_dir=sys.argv[2], output_name="full", resolution="64", network_dim=16, train_batch_size=1,
    max_train_epochs=None, max_train_steps=3, save_every_n_epochs=None,
)
result = Trainer(checkpoint, make_config(values), Path(sys.argv[3])).run()
header = scan_network(result.files[-1])
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps(dict(
    steps=result.steps, losses=result.losses, seconds=result.seconds, keys=sorted(header.keys),
    peak_gib=peak / 2 ** (30 if sys.platform == "darwin" else 20),
)))
"""


@pytest.fixture(scope="module")
def full_size_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """860 M parameters of U-Net, 84 M of VAE and 123 M of text encoder, written by a process of its own: 2.1 GB."""
    path = tmp_path_factory.mktemp("full") / "full-sd1.safetensors"
    code = (
        "import sys, torch; from pathlib import Path\n"
        "from lora_ext.host.standalone.random_checkpoint import write_random_checkpoint\n"
        "from lora_ext.host.standalone.unet import SD1_UNET\n"
        "from lora_ext.host.standalone.vae import VAEConfig\n"
        "text = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)\n"
        "write_random_checkpoint(Path(sys.argv[1]), SD1_UNET, VAEConfig(), text, torch.float16)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], cwd=ROOT, check=True, timeout=300)
    yield path
    path.unlink()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="peak memory is measured with POSIX' getrusage")
def test_three_steps_within_8_gb(full_size_checkpoint: Path, pictures: Path, tmp_path: Path) -> None:
    arguments = [str(full_size_checkpoint), str(pictures), str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-c", TRAINING, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["steps"] == 3 and report["peak_gib"] < 8
    with gzip.open(ROOT / "tests" / "data" / "sd1_lora.json.gz", "rt", encoding="utf-8") as file:
        modules = json.load(file)
    suffixes = ("alpha", "lora_down.weight", "lora_up.weight")
    assert report["keys"] == sorted(f"{module}.{suffix}" for module in modules for suffix in suffixes)
