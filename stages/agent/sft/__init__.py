"""Fine-tuning on trajectories."""
