"""Data sets, transforms and sampling."""
