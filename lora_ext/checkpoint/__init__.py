"""The loaded checkpoint as the core sees it."""
