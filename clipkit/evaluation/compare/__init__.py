"""Many results beside each other: one table of figures, whoever published them, and the analyses that read it."""
