"""Attention maps for a radiologist, and the radiologist's verdicts as labels again."""
