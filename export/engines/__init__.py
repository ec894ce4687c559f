"""Model bundle to TensorRT engines, and whether engines compute the model."""
