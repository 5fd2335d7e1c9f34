"""What leaving early gains when tokens of all loops share a batch."""
