"""The paper's own figures (clara.md section 9), for orientation: Mistral-7B, 8 H100, other candidates than ours.

arXiv 2511.18659, v3. Percent, as printed there.
"""

from __future__ import annotations

COLUMNS = ("NQ", "HotpotQA", "MuSiQue", "2Wiki", "average")

COVER_EM = {
    "full text + BGE": ((54.58, 42.94, 8.94, 44.24, 37.67), (71.64, 70.77, 45.72, 68.83, 64.24)),
    "LLMLingua-2 4x": ((47.53, 37.05, 9.02, 44.35, 34.49), (63.99, 52.42, 27.47, 53.92, 49.45)),
    "PISCO 16x": ((54.39, 41.94, 10.09, 44.88, 37.83), (73.44, 66.53, 33.80, 60.45, 58.55)),
    "SCP 4x": ((57.05, 45.09, 10.34, 46.94, 39.86), (76.50, 73.81, 46.26, 70.48, 66.76)),
    "SCP 16x": ((55.56, 43.72, 10.55, 46.00, 38.96), (75.48, 70.79, 43.15, 66.16, 63.90)),
    "SCP 32x": ((54.64, 43.52, 10.55, 46.58, 38.82), (73.77, 69.51, 38.31, 64.54, 61.53)),
    "SCP 128x": ((53.36, 41.37, 10.26, 46.40, 37.85), (69.96, 62.09, 30.86, 59.08, 55.50)),
}
"""Compression, cover-EM: normal (top 5 of BGE-large), then oracle, in the order of ``COLUMNS``."""

END_TO_END_F1 = {
    "end to end from instruct 16x, normal": (50.89, 47.62, 18.01, 44.66),
    "DRO on full text, normal": (51.01, 47.87, 25.32, 43.65),
    "end to end from scp 4x, oracle": (77.80, 77.66, 41.59, 73.20),
}
"""Selection and answer trained together, F1, in the order of the first four ``COLUMNS``."""

RECALL_AT_5 = {
    "CLaRa 4x": 96.21,
    "BGE reranker": 85.93,
    "supervised reasoner from instruct 4x": 77.40,
    "supervised reasoner from scp 4x": 82.84,
}
"""Reranking of 20 candidates of HotpotQA, oracle."""
