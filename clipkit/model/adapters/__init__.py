"""Models that are not clipkit's behind the encoder's face: of other packages, and programs in files."""
