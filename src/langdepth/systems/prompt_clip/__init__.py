"""Prompt learning for depth with CLIP."""
