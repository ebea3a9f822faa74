"""Pre-trained encoders that ask a prompt source for their prompts, layer by layer."""

from mope.encoders.base import Encoder, EncoderOutput
from mope.encoders.blackbox import BlackBoxEncoder
from mope.encoders.families import FAMILIES, Family
from mope.encoders.transformer import TransformerEncoder
from mope.encoders.tuning import TunedEncoder
from mope.encoders.video import VideoEncoder
from mope.encoders.weights import load_encoder

__all__ = [
    "FAMILIES",
    "BlackBoxEncoder",
    "Encoder",
    "EncoderOutput",
    "Family",
    "TransformerEncoder",
    "TunedEncoder",
    "VideoEncoder",
    "load_encoder",
]
