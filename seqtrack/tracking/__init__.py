"""Experiment tracking, beside training."""
