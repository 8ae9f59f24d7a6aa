"""Parts of a training run: the steps, what happens between them, what is written."""
