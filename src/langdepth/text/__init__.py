"""Words: scenes, prompts, encoders."""
