"""Backbones shared by families, with weight import by path."""
