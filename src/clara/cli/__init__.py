"""The command line: one file a command. The only room that prints, reads arguments and environment, picks a device.

``entry`` joins the commands and words every error; ``options`` holds the options that commands share.
"""

from clara.cli.entry import application, main

__all__ = ["application", "main"]


def __getattr__(name: str) -> object:
    if name == "app":  # all commands, imported only where somebody asks for them
        return application()
    raise AttributeError(f"module 'clara.cli' has no attribute {name!r}")
