"""Frames of a camera to key and delta packets and back: only what changes is encoded and sent."""
