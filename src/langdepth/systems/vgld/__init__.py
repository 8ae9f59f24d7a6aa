"""VGLD."""
