"""Attention maps as de-identified DICOM objects, and sending them to a node."""
