"""Models whose layers run again and again with the same weights."""
