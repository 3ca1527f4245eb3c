"""Test texts in the training texts."""
