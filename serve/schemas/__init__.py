"""Wire models, one module per resource: the same over HTTP and over a Ray handle."""
