"""Axes of values, and labelled grids of pictures."""
