"""`example-near`: depth up to 5 m, averaged with that of the mirrored image."""

from langdepth.evaluation.protocols import Protocol

NEAR = Protocol(name="example-near", flip=True, max_depth=5.0)
