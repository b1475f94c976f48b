"""LLaDA's published sampler (2502.09992) as it stands today, written down plainly: the reference for `quota`.

At every step it does all of it: a full pass over the batch, logits at every position of prompt and canvas, their softmax in
the model's precision and, at a temperature, Gumbel noise in float64 over the whole vocabulary; on to the last step, whatever
rows have ended. What is added costs nothing: prompts of unequal length (padded on the left, hidden from attention), ids
that must not be written, positions that are given. Blocks without a mask are passed over.

Axes: B rows, L columns (padding, prompt, canvas), G canvas positions, V vocabulary.
"""

import torch


def noisy(logits, temperature):
    """Logits whose largest is a draw from softmax(logits / temperature); as they are at temperature 0."""
    if temperature == 0:
        return logits
    noise = torch.rand_like(logits, dtype=torch.float64)
    return logits.double().exp() / (-noise.log()) ** temperature


@torch.inference_mode()
def llada_loop(denoiser, prompts, length, block, steps, temperature=0.0, canvases=None) -> list[list[int]]:
    """The canvases of a batch of token-id prompts, each of `length` positions.

    Args:
        denoiser: a full-attention, unshifted model with its special ids.
        prompts: token ids.
        length, block, steps: positions of the canvas and of a block, and denoising steps of the whole canvas.
        temperature: of the Gumbel noise, which comes from the global generator.
        canvases: tokens that are given, None where a position is to be denoised.
    """
    mask, padding = denoiser.mask_id, denoiser.pad_id
    width = max(map(len, prompts))
    given = canvases or [[None] * length] * len(prompts)
    ids_BL = torch.tensor(
        [
            [padding] * (width - len(prompt)) + list(prompt) + [mask if token is None else token for token in canvas]
            for prompt, canvas in zip(prompts, given, strict=True)
        ],
        device=denoiser.device,
    )
    real_BL = torch.ones_like(ids_BL)
    for b, prompt in enumerate(prompts):
        real_BL[b, : width - len(prompt)] = 0
    arguments = {"use_cache": False}  # what a causal model would keep, and nobody here would read
    if not real_BL.all():
        arguments |= {"attention_mask": real_BL, "position_ids": (real_BL.cumsum(1) - 1).clamp(min=0)}
    forbidden = [mask] if padding in denoiser.eos_ids else [mask, padding]
    per_block = steps // (length // block)
    for low in range(width, width + length, block):
        high = low + block
        masks_B = (ids_BL[:, low:high] == mask).sum(1)
        for step in range(per_block if masks_B.any() else 0):
            logits_BLV = denoiser.model(input_ids=ids_BL, **arguments).logits
            logits_BLV[..., forbidden] = -torch.inf
            token_BL = noisy(logits_BLV, temperature).argmax(-1)
            confidence_BL = logits_BLV.softmax(-1).gather(-1, token_BL[..., None])[..., 0]
            confidence_BL[ids_BL != mask] = -torch.inf
            confidence_BL[:, high:] = -torch.inf
            for b, masks in enumerate(masks_B.tolist()):
                count = masks // per_block + (step < masks % per_block)
                chosen = confidence_BL[b].topk(count).indices
                ids_BL[b, chosen] = token_BL[b, chosen]
    return ids_BL[:, width:].tolist()
