"""What two runs of the same experiment have in common, as numbers, figures and pages."""
