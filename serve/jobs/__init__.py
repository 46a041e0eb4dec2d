"""Work that is accepted now and done later, whatever dies meanwhile."""
