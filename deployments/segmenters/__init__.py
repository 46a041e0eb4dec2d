"""One module per way of finding the region; `base.py` says what they share."""
