"""Compares two runs of the same experiment: numbers, figures and pages."""
