"""Why a model answers as it does (clara.md section 7), and how robust its answers are to perturbed context.

An analysis goes from a model and records to a frozen record: by its answers (``answers``), by what goes on inside it
(``inside``), by its memories (``logit_lens``, ``embedding_map``, ``fidelity``). ``harness`` has the loop that they
share, ``kinds`` names them, ``evaluate.plots`` draws them. Tensor work is ``clara.model.inspection``'s; which files and
models are used, and where results go, is the command line's.
"""
