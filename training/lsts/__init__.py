"""LSTS: video object detection; the whole network runs on key frames, the others look back where they learned to."""
