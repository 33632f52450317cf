"""The experiment of results/sg_darts: its protocol, what run folders hold of it, and the report of it."""
