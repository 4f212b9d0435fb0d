"""Calibration: what of a checkpoint is set by measuring or computing, without a training step."""
