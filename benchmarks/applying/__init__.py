"""Applying networks, ours beside the WebUI's built-in Lora: one process, the same full-size weights and files."""
