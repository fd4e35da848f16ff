"""Measurements of speed and memory: `python run.py bench`."""
