"""Augmenters: what they declare (light), and the pixels they change (torch, kornia)."""
