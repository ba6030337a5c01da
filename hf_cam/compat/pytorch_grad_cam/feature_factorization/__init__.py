"""Deep feature factorization by grad-cam's names."""
