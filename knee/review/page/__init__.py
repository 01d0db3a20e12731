"""The offline review page: one HTML file."""
