"""Training: one file a stage, one loop. Never searches an index: candidates come in the batch."""
