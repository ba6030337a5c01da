"""Models that explain themselves: a graph that returns the logits and a map, for other runtimes."""
