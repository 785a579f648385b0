"""An adapter merged into its base: one plain model, and how far its logits are from those of the trained one."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ctxaware.models import load_model
from ctxaware.runs.files import whole_folder

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase


def merge_adapter(
    trained: "PeftModel",
    tokenizer: "PreTrainedTokenizerBase",
    base: str,
    out: Path,
    dtype: str,
    samples: Sequence[Sequence[int]],
) -> float:
    """Merge a trained adapter into its base in full precision, and save it.

    Of a 4-bit model the adapter was trained beside rounded weights and is merged into the unrounded ones, so that
    logits move; what is evaluated should be named.

    Args:
        trained: the PEFT model in training, on any device; left in evaluation mode.
        tokenizer: saved with it.
        base: folder or hub name of the base that the adapter was trained on.
        out: the folder to write; its parent holds the saved adapter.
        dtype: of the merged weights: a name of torch's, or auto for that of the base.
        samples: token ids of texts to compare logits on.

    Returns:
        The greatest absolute difference of a logit on the samples.
    """
    import torch
    from peft import PeftModel

    revision = trained.peft_config["default"].revision
    model = load_model(base, revision, dtype, trained.device)
    merged = PeftModel.from_pretrained(model, out.parent).merge_and_unload().eval()
    trained.eval()
    difference = 0.0
    with torch.no_grad():
        for ids in samples:
            batch = torch.tensor([ids], device=trained.device)
            moved = (merged(batch).logits.float() - trained(batch).logits.float()).abs().max()
            difference = max(difference, float(moved))
    with whole_folder(out) as unfinished:
        merged.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
    return difference
