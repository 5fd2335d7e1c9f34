"""Compression: models that lose weights or layers, and get back what that cost."""
