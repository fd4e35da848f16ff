"""The programs around the core: the WebUI, and a small standalone host."""
