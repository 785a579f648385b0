"""The plain formula of attention mass, from materialised matrices, and the self-check against it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from ctxaware.attention.kernel import attention_implementation, text_decoder
from ctxaware.attention.mass import attention_mass, run_forward
from ctxaware.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def check_against_eager(model: PreTrainedModel, layers: Sequence[int], n_tokens: int = 48) -> float:
    """Compare the masses on a short random sequence with those of materialised attention matrices.

    It costs one short forward, and turns an architecture whose attention does something unforeseen into
    an error in place of wrong scores.

    Returns:
        The greatest difference seen.

    Raises:
        InputError: the two differ by more than rounding.
    """
    generator = torch.Generator().manual_seed(0)
    n_vocabulary = min(model.get_input_embeddings().weight.shape[0], 1000)  # plain text tokens stand early
    input_ids = torch.randint(n_vocabulary, (1, n_tokens), generator=generator)
    groups = torch.rand((1, 1, n_tokens), generator=generator) < 0.5
    rows = torch.arange(n_tokens)[None]
    ours = attention_mass(model, input_ids, groups, rows, layers)
    expected = eager_mass(model, input_ids, groups, layers)
    difference = max(float((ours[i] - expected[i]).abs().max()) for i in layers)
    limit = 1e-3 if model.dtype == torch.float32 else 0.1  # meanings differ by more, rounding by less
    if not difference <= limit:
        raise InputError(
            f"{type(model).__name__} computes attention in a way that is not understood here (masses differ by "
            f"{difference:.2g} from its materialised attention); scores would be wrong, so there are none"
        )
    return difference


def eager_mass(
    model: PreTrainedModel, input_ids: torch.Tensor, groups: torch.Tensor, layers: Sequence[int]
) -> dict[int, torch.Tensor]:
    """The plain formula, for comparison: as `attention_mass` for all query rows, from L x L attention matrices.

    Takes one sequence without padding; runs the whole decoder with `output_attentions=True`.
    """
    decoder = text_decoder(model)
    with attention_implementation(decoder, "eager"), torch.no_grad():
        out = decoder(input_ids=input_ids.to(model.device), use_cache=False, output_attentions=True)
    # hybrid models report matrices of their softmax layers only, in the order of the forward
    reported = run_forward(model, input_ids, groups, torch.zeros((1, 1), dtype=torch.long), layers=()).seen
    by_layer = dict(zip(reported, out.attentions, strict=True))
    value = groups.to(model.device).transpose(1, 2)[:, None].float()  # [batch, 1, n_keys, n_groups]
    return {i: by_layer[i].float() @ value for i in layers}
