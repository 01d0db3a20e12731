"""From a manifest to batches: checks, splits, the decoded-image cache, datasets and augmented views."""
