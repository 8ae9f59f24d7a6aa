"""From images to depth: options, ensembles, what is written."""
