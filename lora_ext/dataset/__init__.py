"""Folders of pictures to batches of latents."""
