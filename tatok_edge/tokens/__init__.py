"""What travels: the budget, the tokens of a frame, what a frame changes, and ragged batches."""
