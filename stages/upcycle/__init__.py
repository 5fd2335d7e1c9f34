"""Upcycling: one dense model, or several that went different ways, become a mixture of experts."""
