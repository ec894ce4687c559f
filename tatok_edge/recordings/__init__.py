"""Recordings of tokens: ``.ttk`` files and token topics of bags, read frame by frame."""
