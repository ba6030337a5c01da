"""What is made of explanations: pictures of several, the difference of two, and evidence on disk."""
