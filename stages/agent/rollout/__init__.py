"""Writing turns with a model, many rollouts at a time."""
