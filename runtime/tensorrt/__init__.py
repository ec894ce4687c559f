"""TensorRT and TensorRT-RTX: versions, engines on disk, and the session that runs them."""
