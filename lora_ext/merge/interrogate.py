"""Which tokens a network moves most: every one of the vocabulary is encoded without it and with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from lora_ext.checkpoint.module_names import text_weights
from lora_ext.checkpoint.patches import Patch
from lora_ext.checkpoint.text.bpe import BOS, EOS, token_texts
from lora_ext.checkpoint.text_part import TextPart
from lora_ext.config.tools.interrogate import InterrogateSettings
from lora_ext.merge.tools import Tool
from lora_ext.merge.work import ToolReport, Work
from lora_ext.networks.file import read_network
from lora_ext.networks.formats import canonical_modules
from lora_ext.networks.matching import match, unmatched_message
from lora_ext.networks.weight_delta import module_deltas
from lora_ext.networks.weight_patch import Share, patches_of
from lora_ext.protocols import UserError

_BATCH = 128  # more are no faster, and half as many are a tenth slower
_BLOCK = 4096  # tokens whose states are kept while the weights change: 100 MB of SDXL's
_TEXT = "lora_te"
_PARTS = {"lora_te": "text encoder", "lora_te1": "first text encoder", "lora_te2": "second text encoder"}

Step = Callable[[int, int], None]


def run(settings: InterrogateSettings, work: Work) -> ToolReport:
    """Tell the tokens that are moved most, and by how much."""
    path = work.network(settings.file)
    file = read_network(path)
    if not any(key.startswith(_TEXT) for key in file.modules):
        raise UserError(
            f"{path.name} has no modules for the text encoder: it changes the U-Net alone, and moves no token"
        )
    with work.open_text(settings.checkpoint.strip()) as part:
        network = canonical_modules(file.tensors, file.metadata, part.architecture)
        text = {key: tensors for key, tensors in network.modules.items() if key.startswith(_TEXT)}
        deltas = module_deltas(text)
        matched = match(deltas, text_weights(part.encoders), part)
        if not matched.views:
            raise UserError(unmatched_message(path.name, matched.unmatched, 0))
        shares = [
            Share(key, 1.0, None, view, deltas[key], parameter) for (key, parameter), view in matched.views.items()
        ]
        count = min(BOS, *(vocabulary_size(encoder.module) for encoder in part.encoders))
        distances = token_distances(part, patches_of(shares), torch.arange(count), settings.clip_skip, work.step)
        prefixes = [encoder.key_prefix for encoder in part.encoders]
        widths = [states_width(encoder.module) for encoder in part.encoders]
        name = part.name
    warnings = []
    if matched.unmatched:
        warnings.append(unmatched_message(path.name, matched.unmatched, len({key for key, _ in matched.views})))
    return _report(path.name, name, prefixes, distances, _weighted(distances, widths), settings.top, warnings)


@torch.no_grad()
def token_distances(
    part: TextPart, patches: Mapping[nn.Parameter, Patch], tokens: Tensor, clip_skip: int, step: Step
) -> Tensor:
    """How far patches move each of the tokens (tokens, encoders): the mean of |difference| over all states of it.

    A token stands between BOS and EOS, as sd-scripts' interrogator has it. The weights are as before afterwards.
    """
    total = 2 * len(tokens)
    found = []
    for number, block in enumerate(tokens.split(_BLOCK)):
        first = 2 * number * _BLOCK
        before = _states(part, block, clip_skip, partial(_tell, step, first, total))
        part.ledger.patch(part.owner, patches)
        try:
            after = _states(part, block, clip_skip, partial(_tell, step, first + len(block), total))
        finally:
            part.ledger.restore(part.owner)
        moved = [(new - old).abs().mean(dim=(1, 2)) for new, old in zip(after, before, strict=True)]
        found.append(torch.stack(moved, dim=1))  # (block, encoders)
    step(total, total)
    return torch.cat(found)


def _tell(step: Step, first: int, total: int, encoded: int) -> None:
    step(first + encoded, total)


def _states(part: TextPart, tokens: Tensor, clip_skip: int, tell: Callable[[int], None]) -> list[Tensor]:
    """Each encoder's states (tokens, 3, width) of BOS, a token and EOS, in fp32 on the CPU."""
    found: list[list[Tensor]] = [[] for _ in part.encoders]
    for number, batch in enumerate(tokens.split(_BATCH)):
        tell(number * _BATCH)
        ids = torch.stack([torch.full_like(batch, BOS), batch, torch.full_like(batch, EOS)], dim=1)
        for encoder, states in zip(part.encoders, found, strict=True):
            states.append(encoder.encode(ids[:, None], clip_skip).float().cpu())  # (batch, 1 chunk, 3)
    return [torch.cat(states) for states in found]


def vocabulary_size(module: nn.Module) -> int:
    """How many tokens a text encoder knows."""
    return _embedding(module).shape[0]


def states_width(module: nn.Module) -> int:
    """How wide a text encoder's states are."""
    return _embedding(module).shape[1]


def _embedding(module: nn.Module) -> Tensor:
    """The tokens' vectors; the WebUI has a layer of its own around them ("token_embedding.wrapped.weight")."""
    return next(each for name, each in module.named_parameters() if "token_embedding." in name)


def _weighted(distances: Tensor, widths: list[int]) -> Tensor:
    """The mean over the states of all encoders side by side, as the U-Net is given them: (tokens,)."""
    shares = torch.tensor(widths, dtype=distances.dtype)
    return (distances * (shares / shares.sum())).sum(dim=1)


def _report(
    name: str, checkpoint: str, prefixes: list[str], distances: Tensor, moved: Tensor, top: int, warnings: list[str]
) -> ToolReport:
    texts = token_texts()
    order = moved.argsort(descending=True, stable=True)[:top].tolist()
    mean = float(moved.mean())
    facts = {"checkpoint": checkpoint, "all tokens": f"{mean:.5f} on average"}
    tokens = []
    for place, token in enumerate(order, start=1):
        by_encoder = {_PARTS[prefix]: float(distances[token, number]) for number, prefix in enumerate(prefixes)}
        parts = ", ".join(f"{part} {value:.5f}" for part, value in by_encoder.items()) if len(by_encoder) > 1 else ""
        times = f", {float(moved[token]) / mean:.1f} times the average" if mean else ""
        facts[f"{place}. {texts[token]}"] = f"{float(moved[token]):.5f}{times}" + (f" ({parts})" if parts else "")
        tokens.append({"token": texts[token], "id": token, "distance": float(moved[token]), "by_encoder": by_encoder})
    if not mean:
        warnings.append(f"{name} moves no token: its modules for the text encoder change nothing")
    return ToolReport(f"{name}: the tokens that it moves most", facts, (), warnings, (), "", {"tokens": tokens})


TOOL = Tool(
    "interrogate",
    "Interrogate",
    "Tell which words a network moves most in the text encoder.",
    InterrogateSettings,
    run,
)
