"""How memories are stored: one codec a file behind one protocol. Knows numbers, not tables."""

from pathlib import Path

from clara.errors import ConfigError
from clara.index.codecs.fp16 import Fp16
from clara.index.codecs.int4 import Int4
from clara.index.codecs.int8 import Int8
from clara.index.codecs.protocol import ByteArray, Codec
from clara.index.codecs.residual import Residual

CODECS = ("fp16", "int8", "int4", "residual")
DEFAULT_CODEC = "fp16"

__all__ = ["CODECS", "DEFAULT_CODEC", "ByteArray", "Codec", "make_codec"]


def make_codec(name: str, shape: tuple[int, int], folder: Path) -> Codec:
    """The codec of a name.

    Args:
        name: one of ``CODECS``.
        shape: N memory tokens and H hidden size.
        folder: the store's, for what a codec has to keep.

    Raises:
        ConfigError: there is no such codec.
    """
    if name == "residual":
        return Residual(shape, folder)
    codecs: dict[str, type[Fp16] | type[Int8] | type[Int4]] = {"fp16": Fp16, "int8": Int8, "int4": Int4}
    if name not in codecs:
        raise ConfigError(f"no codec named {name!r}; there are {', '.join(CODECS)}")
    return codecs[name](shape)
