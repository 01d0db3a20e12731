"""Trained networks as ONNX files: written from a run folder, and run by ONNX Runtime without torch."""
