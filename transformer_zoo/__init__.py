"""Papers on transformers and masked modelling as pure Flax modules, trained by one sharded loop."""

__version__ = "0.1.0"
