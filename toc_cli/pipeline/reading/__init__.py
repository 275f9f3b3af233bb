"""How a checkpoint and its features are read, and how well that is known."""
