"""The command line. The only room that prints, reads arguments and environment, picks a device.

Commands that belong together share a file; ``entry`` joins them and words every error, ``options`` holds the options
that they share, ``session`` opens models and stores, ``terminal`` prints.
"""

from clara.cli.entry import application, main

__all__ = ["application", "main"]


def __getattr__(name: str) -> object:
    if name == "app":  # all commands, imported only where somebody asks for them
        return application()
    raise AttributeError(f"module 'clara.cli' has no attribute {name!r}")
