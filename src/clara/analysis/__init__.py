"""Why a model answers as it does (clara.md section 7), and how robust its answers are to perturbed context.

One file an analysis: from a model and records to a frozen record; ``harness`` has the loop that they share, ``kinds``
names them, ``evaluate.plots`` draws them. Tensor work is ``clara.model.inspection``'s; which files and models are used,
and where results go, is the command line's.
"""
