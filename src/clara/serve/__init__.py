"""The server room: HTTP and MCP over the pipeline."""
