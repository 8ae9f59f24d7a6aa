"""Clips: reading them, depth that does not flicker, files that hold a whole clip."""
