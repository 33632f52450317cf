"""Textbook implementations, independent of the package, that the tests hold it against."""
