"""Who gets which version, what that did, and how a version becomes the default."""
