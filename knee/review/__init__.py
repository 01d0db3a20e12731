"""Export attention maps for radiologists, and turn their verdicts into labels."""
