"""From a checkpoint and a configuration to network files."""
