"""The engine's own cost: what is left when the stages themselves take no time."""
