"""Data synthesis (clara.md section 2): documents in, verified training records out, through an LLM over HTTP.

``sources`` finds the passages, ``run`` takes each through its ``rounds``; ``output`` writes the records and counts
them; ``automatic`` makes records without an LLM. Never loads a model; needs the extra ``synth``.
"""
