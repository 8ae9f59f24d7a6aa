"""Tools of the command `langdepth data`: prepare, check, show, overlays, captions, samples."""
