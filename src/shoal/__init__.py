"""Autoencoders and GANs: what is learned. Knows torch and nothing of Ray or TensorBoard."""

__version__ = "0.1.0"
