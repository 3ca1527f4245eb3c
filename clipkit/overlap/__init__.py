"""Training shards against test sets: which test pictures were in the training data, and what that did to the scores."""
