"""Metres for relative depth maps, from words, the photo and what is known about the scene."""
