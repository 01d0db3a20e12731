"""Experiments on the toolkit; each file or package is a command of its own."""
