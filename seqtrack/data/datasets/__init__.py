"""Readers of data sets: each turns its files on disk into a frame index."""
