"""Hybrid heads: the delta rule against that of transformers, and hybrids as the context grows."""
