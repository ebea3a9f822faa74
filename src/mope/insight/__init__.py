"""What a run does, as numbers, pictures and a page: experts, attention, which modality mattered."""

from mope.insight.attention import attention_maps
from mope.insight.explanation import Explanation, explain_rows

__all__ = ["Explanation", "attention_maps", "explain_rows"]
