"""What would change, in what order, and the way back."""
