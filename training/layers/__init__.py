"""Layers used by more than one family."""
