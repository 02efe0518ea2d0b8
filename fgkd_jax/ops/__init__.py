"""Arrays in, arrays out: the numerical core."""
