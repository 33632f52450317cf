"""Studies: a protocol as data, what run folders hold of it, its statistics, and its report."""
