"""Whole experiments: prepared, trained, trained twice and compared; data sets packed."""
