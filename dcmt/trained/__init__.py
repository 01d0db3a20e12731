"""A trained run opened: its networks, what they were trained on, and the grading of images that are in no manifest."""
