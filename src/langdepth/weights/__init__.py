"""Weights files: written, read, fetched, converted."""
