"""The model room: backbone, adapters, memories, generation, checkpoints. Knows no files to index and no store."""

from clara.model.clara_model import ClaraModel, default_cache
from clara.model.generator import Sampling

__all__ = ["ClaraModel", "Sampling", "default_cache"]
