"""SPACE-CLIP."""
