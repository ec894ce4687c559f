"""Checkpoint to model bundle, and what can be added to a bundle: the int8 decoder and the refiner."""
