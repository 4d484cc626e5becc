"""From LaSOT folders to batches: frame index, random draws, crops, and the stream."""
