"""A web that misbehaves on purpose, and what a build must make of it."""
