"""Rows and blobs: the only package that knows which database and which object store it is."""
