"""The routes, one file a family; each offers a ``router``."""
