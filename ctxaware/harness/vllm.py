"""`lm_eval --model ctxaware-vllm`: the harness's vLLM model with the indicator. vLLM shares prefixes by itself."""

from lm_eval.models.vllm_causallms import VLLM

from ctxaware.harness.indicator import IndicatorMixin


class ContextVLLM(IndicatorMixin, VLLM):
    """The harness's vLLM model with `indicator=never|always`."""
