"""Training: one loop, on DeepSpeed directly, for every stage that trains."""
