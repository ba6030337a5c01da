"""Concepts of a data set: the directions of a layer of which its activations are composed, and what each one does."""
