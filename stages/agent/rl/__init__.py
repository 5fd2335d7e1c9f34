"""Reinforcement learning from rollouts: rewards for turns, advantages, losses, and the recipe that trains by them."""
