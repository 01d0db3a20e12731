"""Knees and experiments, whatever the method: data, views, metrics, evaluation, phantom and review."""
