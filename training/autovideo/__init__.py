"""AutoVideo: pipelines of declared primitives, written as documents, trained and searched as a whole."""
