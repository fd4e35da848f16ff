"""Adapters of every algorithm: what is put over a module's forward while it is trained."""
