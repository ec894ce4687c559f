"""Pictures and videos that are written, and drawings of the kept tokens."""
