"""Vision backbones."""
