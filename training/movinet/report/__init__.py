"""The page about searches and nets: what the other stages left, read, compared and drawn."""
