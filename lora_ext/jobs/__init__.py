"""Runs in their own threads, and the registry of runs on disk."""
