"""Quantisation beside other implementations, and what corrected weights cost at inference."""
