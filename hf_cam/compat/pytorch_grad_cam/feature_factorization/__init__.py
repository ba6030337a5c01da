"""Deep feature factorisation by grad-cam's names."""
