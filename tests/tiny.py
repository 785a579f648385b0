"""Tiny tokenizers and models, built in memory."""

from functools import cache
from pathlib import Path

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
TINYLLAMA = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\\n' + message['content'] + eos_token + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
# the markers of the templates that TRL ships, as special tokens, some of which take white space beside them
SPECIAL = [
    "<|im_start|>",
    "<|im_end|>",
    "<s>",
    "</s>",
    "<bos>",
    "<eos>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|begin_of_text|>",
    "<|START_OF_TURN_TOKEN|>",
    "<|END_OF_TURN_TOKEN|>",
    "<|USER_TOKEN|>",
    "<|CHATBOT_TOKEN|>",
    "<|SYSTEM_TOKEN|>",
    "<|turn>",
    "<turn|>",
    "[gMASK]",
    "<sop>",
    "<|observation|>",
    "<|start|>",
    "<|message|>",
    "<|channel|>",
    "<|return|>",
    "<|startoftext|>",
    "<|endoftext|>",
]
TAKES_SPACE = ["<|user|>", "<|assistant|>", "<|system|>", "<|end|>"]  # Phi-3's: rstrip


@cache
def _byte_level() -> str:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    text = [
        "the user asks the assistant about the lake and the light house",
        "\n\n",
        "Where is it? It is here. éàü 你好",
    ]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(text * 4, trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet))
    return tokenizer.to_str()


@cache
def _metaspace() -> str:
    from tokenizers import Tokenizer, decoders, models, normalizers, trainers

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    special = ["<unk>", *(f"<0x{i:02X}>" for i in range(256))]
    text = ["▁the▁user▁asks▁the▁assistant", "abcdefghijklmnopqrstuvwxyz", "\n <|>/.?:"]
    tokenizer.train_from_iterator(text * 4, trainers.BpeTrainer(vocab_size=400, special_tokens=special))
    return tokenizer.to_str()


def make_tokenizer(chat_template: str, kind: str = "byte-level", special: tuple[str, ...] = ()):
    """A fast tokenizer.

    Args:
        chat_template: Jinja text.
        kind: "byte-level" (GPT-2's, Llama 3's way) or "metaspace" (Llama 2's way, with byte fallback).
        special: more special tokens.
    """
    from tokenizers import AddedToken, Tokenizer
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer.from_str(_byte_level() if kind == "byte-level" else _metaspace())
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="</s>", chat_template=chat_template
    )
    added = [AddedToken(t, special=True, normalized=False) for t in dict.fromkeys((*SPECIAL, *special))]
    added += [AddedToken(t, special=True, normalized=False, rstrip=True) for t in TAKES_SPACE]
    tokenizer.add_special_tokens({"extra_special_tokens": added})
    return tokenizer


def trl_templates() -> dict[str, str]:
    """The chat templates that TRL ships, by name; skips the test where TRL is absent."""
    import pytest

    trl = pytest.importorskip("trl")
    folder = Path(trl.__file__).parent / "chat_templates"
    return {path.stem: path.read_text() for path in sorted(folder.glob("*.jinja"))}


def random_llama(n_layers: int = 3, vocab_size: int = 512, seed: int = 0):
    """A tiny random Llama with grouped heads whose attention is far from uniform."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=n_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
    )
    model = LlamaForCausalLM(config)
    for weight in model.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.25)
    return model.eval()
