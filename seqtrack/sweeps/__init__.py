"""Many trainings that differ in a few settings, and what they show together."""
