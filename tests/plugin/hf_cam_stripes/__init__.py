"""A plug-in of hf-cam; each of its parts is one file, and `model.py` is what they are tried on."""
