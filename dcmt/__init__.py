"""The mean teacher with dual consistency (Huo et al. 2020), and the application around it."""

__version__ = "0.1.0"
