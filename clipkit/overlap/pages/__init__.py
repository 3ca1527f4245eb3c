"""What a person reads of the findings: pairs beside each other, and the report in words."""
