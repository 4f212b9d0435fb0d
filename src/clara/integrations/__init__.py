"""Retrievers of other frameworks over an open store, one file a framework; each needs the extra of its name."""
