"""Explains a model's answers (clara.md section 7), and measures their robustness to perturbed context.

An analysis goes from a model and records to a frozen record: by its answers (``answers``), by its attention and
gradients (``inside``), by its memories (``logit_lens``, ``embedding_map``, ``fidelity``). ``harness`` has the loop that
they share, ``kinds`` names them, ``evaluate.plots`` draws them. Tensor work is ``clara.model.inspection``'s.
"""
