"""Model bundle to TensorRT engines, and the verification of engines."""
