"""Prompt tags to patched weights, and back."""
