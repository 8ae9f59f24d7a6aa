"""A service that predicts for programs on this machine or in this network: FastAPI's routes before ``prediction``."""
