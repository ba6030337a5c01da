"""Models: loading them with their preprocessing, finding their files, and reading what they report about themselves."""
