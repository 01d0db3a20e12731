"""What an attention map shows and does not show: the one sentence of the page, the pictures, DICOM objects and commands."""

CLAIM = (
    "Maps show where the model's attention was; they are not a segmentation of disease. "
    "Research use only, not for diagnosis."
)
