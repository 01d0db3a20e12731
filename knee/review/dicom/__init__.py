"""Attention as DICOM objects, de-identified, and sending them."""
