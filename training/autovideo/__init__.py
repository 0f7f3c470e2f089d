"""Pipelines of primitives that learn to recognise videos."""
