"""LSTS: video object detection that runs its whole network on key frames, and looks from the others where it learned."""
