"""What the overlap did to a score, and how sure that is."""
