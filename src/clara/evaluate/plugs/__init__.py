"""Plug-ins for other evaluation suites: ``plugs.mteb`` (MTEB and BEIR) and ``plugs.lm_eval``; each needs its extra."""
