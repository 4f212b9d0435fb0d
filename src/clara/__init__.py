"""CLaRa."""
