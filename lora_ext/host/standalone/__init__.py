"""A small host of our own: networks in ldm layout, checkpoint loader, sampler."""
