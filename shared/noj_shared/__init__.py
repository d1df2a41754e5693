"""Vocabulary and wire models of NOJ dispatch. No I/O happens in this package."""
