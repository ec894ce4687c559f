"""Tokens: the budget, the frame, the delta and the ragged batch."""
