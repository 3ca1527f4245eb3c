"""What a run found, as terminal tables, plots and one HTML page."""
