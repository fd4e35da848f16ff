"""HTTP routes that both programs serve."""
