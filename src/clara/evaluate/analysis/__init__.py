"""Why a model answers as it does (clara.md section 7), and how it bears being disturbed.

One file an analysis: from a model and questions to a frozen record with ``to_json``; ``figures`` draws them. Tensor
work is ``clara.model.inspection``'s; which files and models are used, and where results go, is the command line's.
"""
