"""The random states of the program around."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def random_states_kept() -> Iterator[None]:
    """The random states of Python, NumPy and torch (CPU and GPUs) go on afterwards as if nothing had been drawn."""
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)
        if gpus:
            torch.cuda.set_rng_state_all(gpus)


def reseed(seed: int) -> None:
    """Let torch's generators of the CPU, and of GPUs that are in use, begin with `seed`.

    `torch.manual_seed` would leave a seed for GPUs that nobody has used yet: the program around would meet it.
    """
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)
