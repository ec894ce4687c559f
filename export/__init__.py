"""Export of trained models: checkpoint to ONNX bundle. Needs the ``export`` extra."""
