"""Tiny random models of many architectures, whose attention is far from uniform."""

import torch
import transformers as tf
from torch.utils._python_dispatch import TorchDispatchMode

N_LAYERS, VOCABULARY = 4, 64
SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
}
GPT2 = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": N_LAYERS, "n_head": 4, "n_positions": 256}
NEOX = {key: value for key, value in SMALL.items() if key not in ("num_key_value_heads", "head_dim")}
SLIDING = ["sliding_attention", "full_attention"] * (N_LAYERS // 2)
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}

CONFIGS = {
    "llama, grouped heads": lambda: tf.LlamaConfig(**SMALL),
    "llama, one key head": lambda: tf.LlamaConfig(**{**SMALL, "num_key_value_heads": 1}),
    "mistral, sliding window": lambda: tf.MistralConfig(**SMALL, sliding_window=7),
    "qwen2": lambda: tf.Qwen2Config(**SMALL),
    "qwen2, some layers sliding": lambda: tf.Qwen2Config(
        **SMALL, use_sliding_window=True, sliding_window=5, max_window_layers=2
    ),
    "qwen3": lambda: tf.Qwen3Config(**SMALL),
    "gemma2, soft-capped and sliding": lambda: tf.Gemma2Config(
        **SMALL, sliding_window=6, layer_types=SLIDING, attn_logit_softcapping=2.0, query_pre_attn_scalar=8
    ),
    "gemma3, sliding": lambda: tf.Gemma3TextConfig(
        **SMALL, sliding_window=6, layer_types=SLIDING, query_pre_attn_scalar=8
    ),
    "gpt2, learnt positions": lambda: tf.GPT2Config(**GPT2),
    "gpt2, scaled by layer": lambda: tf.GPT2Config(**GPT2, scale_attn_by_inverse_layer_idx=True),
    "gpt-neox, partial rotary": lambda: tf.GPTNeoXConfig(**NEOX),
    "phi3, fused projection": lambda: tf.Phi3Config(**SMALL, pad_token_id=0),
    "gpt-oss, attention sinks": lambda: tf.GptOssConfig(**SMALL, **EXPERTS, sliding_window=6, layer_types=SLIDING),
    "olmo2, norms on queries and keys": lambda: tf.Olmo2Config(**{k: v for k, v in SMALL.items() if k != "head_dim"}),
}


def random_model(config):
    """A model of `config`, always the same."""
    torch.manual_seed(0)
    model = tf.AutoModelForCausalLM.from_config(config)
    for name, weight in model.named_parameters():  # weights of the usual size make attention nearly uniform
        if weight.dim() > 1 or "sinks" in name:
            torch.nn.init.normal_(weight, std=0.25)
    return model.eval()


class LargestTensor(TorchDispatchMode):
    """Notes in `seen` how many elements the largest tensor of a block of code has."""

    seen = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.seen = max(self.seen, tensor.numel())
        return out
