"""What other programs call the modules and tensors of a network, put into sd-scripts' words."""

from lora_ext.networks.formats.canonical import EMBEDDING, NetworkModules, canonical_modules

__all__ = ["EMBEDDING", "NetworkModules", "canonical_modules"]
