"""Hybrid heads: the delta rule against that of transformers, hybrids as the context grows, what kept heads recall."""
