"""Who calls, what that may do, what it used."""
