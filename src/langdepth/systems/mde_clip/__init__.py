"""MDE-CLIP."""
