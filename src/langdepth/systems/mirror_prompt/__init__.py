"""The mirror prompt."""
