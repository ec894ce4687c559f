"""Checkpoint to model bundle, and the parts that can be added to a bundle: the int8 graphs and the refiner."""
