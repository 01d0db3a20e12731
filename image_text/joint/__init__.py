"""The joint transformer over image, report and table (Beyond CLIP 2025); no modality reaches the embedding of another."""
