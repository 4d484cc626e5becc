"""From LaSOT folders to batches: index, draws, crops, stream."""
