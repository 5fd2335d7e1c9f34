"""Small agents that use tools: environments, trajectories and their cleaning, fine-tuning, rewards and evaluation."""
