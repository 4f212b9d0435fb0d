"""An OpenAI-compatible server over stores, and a Model Context Protocol server: answers, search and uploads.

``app`` puts the HTTP server together, ``api/`` holds its routes. Who may do what is ``access``'s work, whose turn it is
with the model ``batching``'s, files and jobs ``uploads``'s. ``mcp`` is the server for agents.
Everything reaches models and stores through ``pipeline`` alone.
"""
