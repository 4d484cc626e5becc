"""A run on disk: its folder, checkpoints, log and metrics, and whether a checkpoint may be continued."""
