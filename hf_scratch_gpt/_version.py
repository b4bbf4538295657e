"""The version, in a separate module so that building the package does not import torch."""

__version__ = "0.1.0"
