"""Tokens to bytes and back: the entropy model, packets and ``.ttk`` files. ``docs/format.md`` specifies them."""
