"""What the training loop costs, beside the Hugging Face `Trainer` on the same work."""
