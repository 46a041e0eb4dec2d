"""What requests in experiments leave behind: exposures, measures of their pictures, shadows."""
