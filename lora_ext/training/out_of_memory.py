"""Want of memory: how it is told from other errors, and what helps."""

from __future__ import annotations

import torch

from lora_ext.config.train_config import TrainConfig

# As Linux and Windows say it of the CPU, and a driver or cuBLAS of a GPU on which others hold the memory.
_WORDS = ("can't allocate memory", "not enough memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch failed for want of memory, on a GPU or on the CPU."""
    return isinstance(error, torch.cuda.OutOfMemoryError) or any(words in str(error) for words in _WORDS)


def advice_for(config: TrainConfig, device: torch.device) -> str:
    """What to do where memory does not suffice for a run."""
    advice = []
    if not config.memory.gradient_checkpointing:
        advice.append("switch gradient_checkpointing on")
    if config.learning.train_batch_size > 1:
        advice.append(f"lower train_batch_size (now {config.learning.train_batch_size})")
    advice.append(f"lower resolution (now {config.dataset.resolution})")
    if not config.network.network_train_unet_only:
        advice.append("switch network_train_unet_only on")
    return f"not enough memory on {device} for this run: {', '.join(advice)}"
