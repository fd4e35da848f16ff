"""LoRA Workshop: the whole life of a LoRA network, in the WebUI, in a small app of its own, and in a shell."""

__version__ = "0.1.0"
