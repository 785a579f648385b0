"""What the tests of scoring share: tokenizers that know the markers of TRL's templates, a sharper tiny model."""

from pathlib import Path

from support import tiny

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
TINYLLAMA = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\\n' + message['content'] + eos_token + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
# the markers of the templates that TRL ships, as special tokens, some of which take white space beside them
SPECIAL = [f"<|{name}|>" for name in ("start_header_id", "end_header_id", "eot_id", "begin_of_text", "observation")]
SPECIAL += [f"<|{name}|>" for name in ("start", "message", "channel", "return", "startoftext", "endoftext")]
SPECIAL += [f"<|{name}_TOKEN|>" for name in ("START_OF_TURN", "END_OF_TURN", "USER", "CHATBOT", "SYSTEM")]
SPECIAL += ["<|im_start|>", "<|im_end|>", "<s>", "</s>", "<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"]
SPECIAL += ["<|turn>", "<turn|>", "[gMASK]", "<sop>"]
TAKES_SPACE = ["<|user|>", "<|assistant|>", "<|system|>", "<|end|>"]  # Phi-3's: rstrip


def make_tokenizer(chat_template: str | None, kind: str = "byte_level", special: tuple[str, ...] = ()):
    """A fast tokenizer with the markers above as special tokens.

    Args:
        chat_template: Jinja text.
        kind: "byte_level" or "sentencepiece_like".
        special: more special tokens.
    """
    from tokenizers import AddedToken

    tokenizer = getattr(tiny, f"{kind}_tokenizer")(chat_template)
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


def sharp_llama(n_layers: int = 3, vocab_size: int = 2000, seed: int = 0):
    """A tiny random Llama with grouped heads whose attention is far from uniform."""
    import torch

    model = tiny.tiny_llama(vocab_size, num_hidden_layers=n_layers, max_position_embeddings=4096)
    torch.manual_seed(seed)
    for weight in model.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.25)
    return model
