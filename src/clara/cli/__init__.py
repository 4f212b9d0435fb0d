"""The command line: one file a command. The only room that prints, reads arguments and environment, picks a device.

``entry`` joins the commands and words every error; ``options`` holds the options that commands share.
"""

from clara.cli.entry import app, main

__all__ = ["app", "main"]
