"""Reports over a collection: a state machine of actions, what they are worth, an expert, and models that learn it."""
