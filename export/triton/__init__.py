"""Model bundle to a Triton model repository."""
