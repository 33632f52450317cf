"""darts_sg."""
