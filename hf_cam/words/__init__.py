"""Which part of the picture made a vision-language model write each word of its answer."""
