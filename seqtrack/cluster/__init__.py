"""The Ray cluster: joining it, sharing it, and stopping what runs on it."""
