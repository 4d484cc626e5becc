"""SeqTrack (CVPR 2023) trained on Ray: deterministic data, exact checkpoints, one command."""
