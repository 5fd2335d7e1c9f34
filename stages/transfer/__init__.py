"""Turning pretrained full-attention models into hybrids, head by head."""
