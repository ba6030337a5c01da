"""A model with what prepares its inputs, its files, and what it reports about itself."""
