"""Few-shot CLIP."""
