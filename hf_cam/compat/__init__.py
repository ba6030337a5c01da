"""The names of other libraries on hf-cam's engine: a script runs after one changed import."""
