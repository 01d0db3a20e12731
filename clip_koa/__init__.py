"""CLIP-KOA: grade an image by its similarity to the written definition of each grade (Jeong and Lee 2025)."""
