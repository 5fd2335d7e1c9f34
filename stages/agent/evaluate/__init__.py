"""What an agent gets done, in figures and on a page to read."""
