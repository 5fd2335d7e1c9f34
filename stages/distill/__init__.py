"""Distillation: students learn from teachers that are already there."""
