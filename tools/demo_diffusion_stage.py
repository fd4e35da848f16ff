"""Stage 2 of the demo checkpoint: text encoder and U-Net together, on latents of drawn scenes."""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from lora_ext.checkpoint.schedule import NoiseSchedule
from lora_ext.checkpoint.text.bpe import BOS, EOS, clip_tokenizer
from lora_ext.demo.drawing import BACKGROUNDS, COLORS, POSITIONS, SHAPES, SIZES, Scene
from lora_ext.host.standalone.unet import UNet, UNetConfig
from lora_ext.host.standalone.vae import VAE
from tools.demo_vae_stage import SCALE_FACTOR, cosine_factor, to_tensor

DEMO_UNET = UNetConfig(
    model_channels=64, channel_mult=(1, 1, 1, 1), transformer_depth=(1, 1, 1, 0), num_heads=4, context_dim=32
)
DEMO_TEXT: dict[str, Any] = {
    "vocab_size": 49408,
    "hidden_size": 32,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "projection_dim": 32,
    "bos_token_id": 49406,
    "eos_token_id": 49407,
    "pad_token_id": 49407,
}
TOKENS = 77
UNTOLD = -100


@dataclass(frozen=True)
class DiffusionStage:
    """How long and how fast the U-Net learns; sizes are (width, height), batch, share of steps, scenes kept."""

    steps: int = 3500
    learning_rate: float = 1.2e-3
    warmup: int = 150
    ema_decay: float = 0.999
    min_snr_gamma: float = 5.0
    empty_captions: float = 0.1
    refresh_every: int = 100
    refresh_count: int = 192
    sizes: tuple[tuple[tuple[int, int], int, float, int], ...] = (
        ((64, 64), 48, 0.84, 6000),
        ((96, 64), 32, 0.05, 600),
        ((64, 96), 32, 0.05, 600),
        ((96, 96), 22, 0.03, 400),
        ((128, 128), 12, 0.03, 400),
    )


@cache
def _word_ids(word: str) -> tuple[int, ...]:
    return tuple(clip_tokenizer()(word, add_special_tokens=False)["input_ids"])


def token_ids(captions: list[str]) -> Tensor:
    """CLIP ids (b, 77): begin, the caption, and ends up to the full length."""
    rows = []
    for caption in captions:
        ids = [BOS] + [i for word in re.findall(r"[a-z]+|[^\sa-z]+", caption.lower()) for i in _word_ids(word)]
        rows.append(ids[: TOKENS - 1] + [EOS] * max(1, TOKENS - len(ids)))
    return torch.tensor(rows)


def make_text_encoder() -> nn.Module:
    """A CLIP text model of the demo's sizes, randomly initialised."""
    from transformers import CLIPTextConfig, CLIPTextModel

    model: nn.Module = CLIPTextModel(CLIPTextConfig(**DEMO_TEXT))
    return model


def encode_text(text: nn.Module, captions: list[str]) -> Tensor:
    """The final layer's states, normed: (b, 77, hidden)."""
    states: Tensor = text(token_ids(captions)).last_hidden_state
    return states


class AttributeHeads(nn.Module):
    """Reads each attribute of a scene from text states: one linear layer apiece, used while the text encoder starts."""

    def __init__(self) -> None:
        super().__init__()
        width = DEMO_TEXT["hidden_size"]
        self.names = {"shape": SHAPES, "color": COLORS, "background": BACKGROUNDS, "size": (*SIZES,)}
        self.names["position"] = (*POSITIONS,)
        self.layers = nn.ModuleDict({name: nn.Linear(width, len(values)) for name, values in self.names.items()})

    def loss(self, states: Tensor, scenes: list[Scene], captions: list[str]) -> Tensor:
        """Cross-entropy of what each caption says, from the states after its end (b, 77, hidden)."""
        ends = (token_ids(captions) == EOS).float()[..., None]
        pooled = (states * ends).sum(dim=1) / ends.sum(dim=1)
        total = states.new_zeros(())
        for name, values in self.names.items():
            words = [_attribute(scene, name) for scene in scenes]
            answers = torch.tensor(
                [
                    values.index(word) if _is_told(name, word, caption) else UNTOLD
                    for word, caption in zip(words, captions, strict=True)
                ]
            )
            total = total + F.cross_entropy(self.layers[name](pooled), answers, ignore_index=UNTOLD)
        return total


def _attribute(scene: Scene, name: str) -> str:
    word: str = getattr(scene.place if name in ("size", "position") else scene, name)
    return word


def _is_told(name: str, word: str, caption: str) -> bool:
    return (f"{word} background" if name == "background" else word) in caption


def start_text_encoder(training: DiffusionTraining, steps: int, log: Callable[[str], None]) -> None:
    """Teach the text encoder, before the U-Net learns, to say at its end positions what a caption says."""
    rng = random.Random(training.seed)
    heads = AttributeHeads()
    optimizer = torch.optim.AdamW([*training.text.parameters(), *heads.parameters()], lr=3e-3, weight_decay=0.0)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * cosine_factor(step, steps, 20)
        scenes = [Scene.random(rng) for _ in range(128)]
        captions = [scene.caption(rng) for scene in scenes]
        loss = heads.loss(encode_text(training.text, captions), scenes, captions)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(training.text.parameters(), 1.0)
        optimizer.step()
        if step % 25 == 0 or step == steps - 1:
            log(f"text step {step} loss {loss.item():.4f}")
    training.averages.update({key: value.clone() for key, value in training.networks.state_dict().items()})


@dataclass
class ScenePool:
    """Scenes of one size with their scaled latents, some of them replaced by new ones from time to time."""

    vae: VAE
    size: tuple[int, int]
    rng: random.Random
    scenes: list[Scene] = field(default_factory=list)
    latents: Tensor = field(default_factory=lambda: torch.empty(0))
    oldest: int = 0

    def fill(self, count: int) -> None:
        """Draw and encode the first `count` scenes."""
        self.scenes = [Scene.random(self.rng) for _ in range(count)]
        self.latents = self._encode(self.scenes)

    def refresh(self, count: int) -> None:
        """Replace the `count` oldest scenes."""
        count = min(count, len(self.scenes) - self.oldest)
        scenes = [Scene.random(self.rng) for _ in range(count)]
        self.scenes[self.oldest : self.oldest + count] = scenes
        self.latents[self.oldest : self.oldest + count] = self._encode(scenes)
        self.oldest = (self.oldest + count) % len(self.scenes)

    def batch(self, count: int) -> tuple[Tensor, list[Scene]]:
        """`count` random scenes and their latents (count, 4, h/8, w/8)."""
        picked = [self.rng.randrange(len(self.scenes)) for _ in range(count)]
        return self.latents[picked], [self.scenes[index] for index in picked]

    @torch.no_grad()
    def _encode(self, scenes: list[Scene]) -> Tensor:
        parts = []
        for start in range(0, len(scenes), 32):
            images = to_tensor([scene.draw(self.size) for scene in scenes[start : start + 32]])
            with torch.autocast("cpu", torch.bfloat16):
                posterior = self.vae.encode(images)
            parts.append(posterior.sample().float() * SCALE_FACTOR)
        return torch.cat(parts)


class DiffusionTraining:
    """The state of stage 2: networks, their averages, optimizer; one call of `step` is one update."""

    def __init__(self, stage: DiffusionStage, seed: int) -> None:
        torch.manual_seed(seed)
        self.stage = stage
        self.seed = seed
        self.unet = UNet(DEMO_UNET)
        self.text = make_text_encoder()
        self.networks = nn.ModuleDict({"unet": self.unet, "text": self.text})
        self.averages = {key: value.clone() for key, value in self.networks.state_dict().items()}
        embeddings = [p for name, p in self.networks.named_parameters() if "embedding" in name or p.ndim == 1]
        kept = {id(parameter) for parameter in embeddings}
        others = [parameter for parameter in self.networks.parameters() if id(parameter) not in kept]
        self.optimizer = torch.optim.AdamW(
            [{"params": others, "weight_decay": 0.01}, {"params": embeddings, "weight_decay": 0.0}],
            lr=stage.learning_rate,
            betas=(0.9, 0.99),
            fused=True,
        )
        self.schedule = NoiseSchedule.scaled_linear()
        self.done = 0

    def step(self, latents: Tensor, captions: list[str]) -> float:
        """One update on scaled latents (b, 4, h, w) with their captions; returns the unweighted loss."""
        factor = cosine_factor(self.done, self.stage.steps, self.stage.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = self.stage.learning_rate * factor
        timesteps = torch.randint(0, len(self.schedule), (len(latents),))
        noise = torch.randn_like(latents)
        noisy = self.schedule.add_noise(latents, noise, timesteps)
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            predicted = self.unet(noisy, timesteps, encode_text(self.text, captions))
        losses = F.mse_loss(predicted.float(), noise, reduction="none").mean(dim=(1, 2, 3))
        snr = self.schedule.snr(timesteps)
        weights = snr.clamp(max=self.stage.min_snr_gamma) / snr
        self.optimizer.zero_grad(set_to_none=True)
        (losses * weights).mean().backward()
        torch.nn.utils.clip_grad_norm_(self.networks.parameters(), 1.0)
        self.optimizer.step()
        self._average()
        self.done += 1
        return losses.mean().item()

    @torch.no_grad()
    def _average(self) -> None:
        decay = min(self.stage.ema_decay, (1 + self.done) / (10 + self.done))
        live = self.networks.state_dict()
        keys = [key for key, value in self.averages.items() if value.is_floating_point()]
        torch._foreach_lerp_([self.averages[key] for key in keys], [live[key] for key in keys], 1 - decay)

    def averaged(self) -> tuple[UNet, nn.Module]:
        """Copies of the U-Net and the text encoder with the averaged weights, in eval mode."""
        networks = nn.ModuleDict({"unet": UNet(DEMO_UNET), "text": make_text_encoder()})
        networks.load_state_dict(self.averages)
        unet, text = networks.eval()["unet"], networks["text"]
        assert isinstance(unet, UNet)
        return unet, text

    def save(self, path: Path) -> None:
        """Write the whole state, atomically."""
        state = {
            "done": self.done,
            "networks": self.networks.state_dict(),
            "averages": self.averages,
            "optimizer": self.optimizer.state_dict(),
        }
        part = path.with_suffix(".part")
        torch.save(state, part)
        os.replace(part, path)

    def resume(self, path: Path) -> None:
        """Continue from a state that `save` wrote."""
        state = torch.load(path, weights_only=True)
        self.done = state["done"]
        self.networks.load_state_dict(state["networks"])
        self.averages = state["averages"]
        self.optimizer.load_state_dict(state["optimizer"])


def run_diffusion(training: DiffusionTraining, vae: VAE, log: Callable[[str], None]) -> Iterator[tuple[int, float]]:
    """Train to the last step; yields (steps done, running loss) after each update."""
    stage = training.stage
    rng = random.Random(f"{training.seed}:{training.done}")
    torch.manual_seed(training.seed + training.done + 1)
    pools = {entry[0]: ScenePool(vae, entry[0], rng) for entry in stage.sizes}
    started, start, average = time.monotonic(), training.done, 1.0
    for size, _, _, kept in stage.sizes:
        pools[size].fill(kept)
    log(f"pools filled in {time.monotonic() - started:.0f} s")
    started = time.monotonic()
    while training.done < stage.steps:
        size, count, _, _ = rng.choices(stage.sizes, weights=[entry[2] for entry in stage.sizes])[0]
        latents, scenes = pools[size].batch(count)
        captions = ["" if rng.random() < stage.empty_captions else scene.caption(rng) for scene in scenes]
        average = 0.98 * average + 0.02 * training.step(latents, captions)
        if training.done % stage.refresh_every == 0:
            for place, pool in enumerate(pools.values()):
                pool.refresh(stage.refresh_count if place == 0 else stage.refresh_count // 16)
        if training.done % 50 == 0:
            pace = (time.monotonic() - started) / (training.done - start)
            left = pace * (stage.steps - training.done) / 60
            log(f"unet step {training.done} loss {average:.4f} {pace:.3f} s a step, {left:.0f} min left")
        yield training.done, average
