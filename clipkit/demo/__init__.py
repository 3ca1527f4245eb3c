"""The embedded demo: draws a small web, serves it on loopback ports, and runs the five commands on it."""
