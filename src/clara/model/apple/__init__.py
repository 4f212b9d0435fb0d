"""Checkpoints in Apple's format: read, run, written back without a changed bit. Its names and prompts live here."""
