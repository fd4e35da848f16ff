"""Text to token ids to encoder states."""
