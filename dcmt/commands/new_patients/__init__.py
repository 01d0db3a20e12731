"""`dcmt predict` for a department: through the exporters of the review, from and to DICOMweb servers."""
