"""What a model reads in a data set: its strategies, and the regions that its classes depend on."""
