"""Reading images of every kind, and the geometry between a file's pixels and what the networks see."""
