"""AutoVideo: pipelines of declared primitives, and searches over them."""
