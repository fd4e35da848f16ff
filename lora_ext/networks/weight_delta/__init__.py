"""ΔW of one module from its stored tensors: the only definition of it in the project.

A multiplier of 0 is no change and 1 is what the network was trained to be (lycoris' own forward). Between and beyond
them ΔW is proportional to the multiplier, except BOFT's, whose stages are interpolated one by one as in lycoris.
"""

from lora_ext.networks.weight_delta.kinds import (
    SUFFIXES,
    module_delta,
    module_deltas,
    weight_delta,
)
from lora_ext.networks.weight_delta.module import (
    LowRankFactors,
    ModuleDelta,
    UnsupportedNetworkError,
    exact_matmul,
)

__all__ = [
    "SUFFIXES",
    "LowRankFactors",
    "ModuleDelta",
    "UnsupportedNetworkError",
    "exact_matmul",
    "module_delta",
    "module_deltas",
    "weight_delta",
]
