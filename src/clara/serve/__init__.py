"""An OpenAI-compatible server over stores: answers, search, embeddings and uploads by HTTP.

``app`` puts it together, ``api/`` holds the routes, one file a family. Who may do what is ``access``'s work, whose turn
it is with the model ``turns``'s, files and jobs ``uploads``'s. Reaches models and stores through ``pipeline`` alone.
"""
