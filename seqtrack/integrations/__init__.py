"""Servers that are told about runs: MLflow and the Hugging Face Hub. Training needs none of them."""
