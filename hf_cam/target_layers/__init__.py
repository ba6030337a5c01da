"""Where to look: adapters, the catalogue of `adapters/`, timm's metadata and the structural probe."""
