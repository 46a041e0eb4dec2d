"""One module per way of running an expert; `base.py` says what they share."""
