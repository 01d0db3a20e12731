"""Image-text pre-training: images with their reports and tables (LumbarCLIP 2025, Beyond CLIP 2025)."""
