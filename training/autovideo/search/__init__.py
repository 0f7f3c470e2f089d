"""The search over whole pipelines: spaces, engines, the ask/tell object, what can be said of its result."""
