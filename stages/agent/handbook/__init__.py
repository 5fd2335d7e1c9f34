"""Behaviours that a model finds in its own work, and work guided by them."""
