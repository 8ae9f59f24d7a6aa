"""Damaged and hostile inputs for ``benchmarks/mutations.py``, a module for each kind."""
