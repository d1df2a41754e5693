"""The judge machine side of NOJ dispatch."""
