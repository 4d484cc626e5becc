"""The training loop, the state that it saves, and how it runs on Ray Train."""
