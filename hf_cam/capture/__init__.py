"""Running an unmodified model and seeing what goes on inside: activations, gradients, attention, the tail alone."""
