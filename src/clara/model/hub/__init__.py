"""The Hugging Face hub, and the other places that weights come from: base models, checkpoints, publishing."""
