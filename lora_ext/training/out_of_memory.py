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
    """What to do where memory does not suffice for a run, what has most effect first."""
    learning, memory, gpu = config.learning, config.memory, device.type != "cpu"
    advice = []
    if learning.train_batch_size > 1:
        advice.append(f"lower train_batch_size (now {learning.train_batch_size})")
    if not memory.gradient_checkpointing:
        advice.append("switch gradient_checkpointing on")
    if gpu and memory.mixed_precision == "no":
        advice.append("set mixed_precision to bf16 (fp16 on cards before RTX 3000)")
    advice.append(f"lower resolution (now {config.dataset.resolution})")
    if gpu and learning.optimizer_type == "AdamW":
        advice.append("set optimizer_type to AdamW8bit")
    if not config.network.network_train_unet_only:
        advice.append("switch network_train_unet_only on")
    if not (memory.cache_latents or memory.cache_latents_to_disk):
        advice.append("switch cache_latents on")
    if config.network.network_dim > 8:
        advice.append(f"lower network_dim (now {config.network.network_dim})")
    retreat = "" if memory.on_out_of_memory == "retreat" else "; or set on_out_of_memory to retreat, and start again"
    return f"not enough memory on {device} for this run: {', '.join(advice)}{retreat}"
