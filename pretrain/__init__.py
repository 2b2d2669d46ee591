"""Pretraining of transformer language models, from a laptop to thousands of GPUs."""

__version__ = "0.1.0"
