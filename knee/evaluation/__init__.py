"""What networks predict, and how well: predictions, reports with intervals, figures, overlays."""
