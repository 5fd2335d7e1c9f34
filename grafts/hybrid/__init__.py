"""Attention heads of one layer turned, each by itself, into linear attention (HydraHead, arXiv 2606.20097)."""
