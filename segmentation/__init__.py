"""The cartilage segmenter that supplies the masks of the attention loss."""
