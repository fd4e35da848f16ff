"""What a network is: targets, adapters, weight deltas, key names, files."""
