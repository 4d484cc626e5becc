"""Online tracking: a trained model follows targets from frame to frame."""

from seqtrack.tracker.settings import TrackerSettings
from seqtrack.tracker.tracker import BatchTracker, Tracked, Tracker

__all__ = ["BatchTracker", "Tracked", "Tracker", "TrackerSettings"]
