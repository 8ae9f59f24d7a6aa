"""WorDepth."""
