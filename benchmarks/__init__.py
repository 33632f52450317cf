"""Speed and memory against the textbook networks of tests/reference, always as ratios measured in one run."""
