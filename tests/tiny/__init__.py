"""Real pipeline and model classes at toy size, with random weights and real tokenizers."""
