"""Export attention maps for radiologists, and turn their verdicts into labels."""

CLAIM = (
    "Maps show where the model's attention was; they are not a segmentation of disease. "
    "Research use only, not for diagnosis."
)
"""The one sentence on the page, in the pictures, in DICOM objects and in the help of ``dcmt review``."""
