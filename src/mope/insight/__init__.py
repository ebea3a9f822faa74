"""What a run does, as numbers, pictures and a page: experts, attention, which modality mattered."""

from mope.insight.attention import attention_maps, attention_of
from mope.insight.explanation import Explanation, explain_rows

__all__ = ["Explanation", "attention_maps", "attention_of", "explain_rows"]
