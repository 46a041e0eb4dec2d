"""What runs, in words."""
