"""How few bins hold a list of integer sizes. Knows nothing of GPUs."""
