"""Pages of searches and of single runs of a pipeline."""
