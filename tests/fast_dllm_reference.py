"""Fast-dLLM's published sampler (2505.22618), written down plainly: the reference for `threshold`, `prefix` and `dual`.

One prompt at a time, as it was released. A block's first step is a whole pass; under a cache its keys and values are kept,
and later steps recompute from the block on (`prefix`) or the block alone, whose keys are replaced (`dual`). Logits of every
position that is computed, and their softmax in float64; on to the last block. Greedy. What is added: ids that must not be
written.

Axes: L columns (prompt, canvas), Q columns of a pass, V vocabulary.
"""

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer


class Replaced(DynamicLayer):
    """A layer's keys and values, of which a pass replaces some columns."""

    span: slice | None = None

    def update(self, key_states, value_states, *args, **kwargs):
        if self.span is None:
            return super().update(key_states, value_states, *args, **kwargs)
        self.keys[:, :, self.span], self.values[:, :, self.span] = key_states, value_states
        return self.keys, self.values


@torch.inference_mode()
def fast_dllm(denoiser, prompt, length, block, threshold, cache="none") -> list[int]:
    """The canvas of a prompt of token ids.

    Args:
        denoiser: a full-attention, unshifted model with its special ids.
        prompt: token ids.
        length, block: positions of the canvas and of a block.
        threshold: confidence from which a token commits; the most confident one always does.
        cache: `none`, `prefix` or `dual`.
    """
    mask, width = denoiser.mask_id, len(prompt)
    ids_1L = torch.tensor([[*prompt, *[mask] * length]], device=denoiser.device)
    forbidden = [mask] if denoiser.pad_id in denoiser.eos_ids else [mask, denoiser.pad_id]
    for low in range(width, width + length, block):
        high, first, last, kept = low + block, 0, width + length, None
        while True:
            arguments = {"use_cache": False}
            if cache != "none":
                if kept is None:
                    kept = DynamicCache()
                    kept.layers = [Replaced() for _ in range(denoiser.model.config.num_hidden_layers)]
                for layer in kept.layers:
                    layer.span = slice(first, last) if first else None
                arguments = {"past_key_values": kept, "use_cache": True}
                if first:
                    seen = torch.zeros(1, 1, last - first, width + length, device=denoiser.device)
                    position = torch.arange(first, last, device=denoiser.device)[None]
                    arguments |= {"attention_mask": seen, "position_ids": position}
            logits_1QV = denoiser.model(input_ids=ids_1L[:, first:last], **arguments).logits
            logits_1QV[..., forbidden] = -torch.inf
            token_1Q = logits_1QV.argmax(-1)
            confidence_1Q = logits_1QV.double().softmax(-1).gather(-1, token_1Q[..., None])[..., 0]
            open_1Q = ids_1L[:, first:last] == mask
            open_1Q[:, high - first :] = False
            confidence_1Q = confidence_1Q.where(open_1Q, -torch.inf)
            chosen_1Q = open_1Q & (confidence_1Q >= threshold)
            chosen_1Q[0, confidence_1Q[0].argmax()] = True
            ids_1L[:, first:last] = torch.where(chosen_1Q, token_1Q, ids_1L[:, first:last])
            if not (ids_1L[:, low:high] == mask).any():
                break
            if cache != "none":
                first, last = low, high if cache == "dual" else width + length
    return ids_1L[0, width:].tolist()
