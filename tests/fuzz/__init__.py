"""Hostile input for everything that the package reads: `make fuzz MINUTES=10`, and a slice of it in `make test`."""
