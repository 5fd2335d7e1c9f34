"""Small models that decide for large ones: which data recipe, which learning rate, which batch."""
