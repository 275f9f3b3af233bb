"""toc: score, prune and vet the codebook of a VQ checkpoint, training-free."""

__version__ = "0.1.0"
