"""Evaluation of graders: predictions, reports with confidence intervals, figures, overlays."""
