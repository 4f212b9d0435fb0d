"""Calibration: what of a checkpoint is set by measuring or computing, without a training step.

``weights`` makes a mean of adapters, adds a text reader, cuts spans by information, and renews the query side;
``questions`` draws what is asked; ``decoding`` measures how passages are found and read; ``run`` joins them.
"""
