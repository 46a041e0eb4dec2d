"""The person with soft edges from a matting network: what the background expert needs."""
