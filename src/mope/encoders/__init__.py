"""Pre-trained encoders that ask a prompt source for their prompts, layer by layer."""

from mope.encoders.families import FAMILIES, Family
from mope.encoders.transformer import EncoderOutput, TransformerEncoder
from mope.encoders.tuning import TunedEncoder
from mope.encoders.weights import load_encoder

__all__ = ["FAMILIES", "EncoderOutput", "Family", "TransformerEncoder", "TunedEncoder", "load_encoder"]
