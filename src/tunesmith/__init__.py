"""tunesmith: from examples to a small language model that is proved to be better."""

__version__ = "0.1.0"
