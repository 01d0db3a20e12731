"""Grading by matching an image to the written definition of each grade (Jeong and Lee 2025)."""
