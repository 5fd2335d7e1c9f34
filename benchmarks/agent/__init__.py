"""How fast agents write and learn."""
