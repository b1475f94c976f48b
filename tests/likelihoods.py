"""Likelihoods written out plainly, from full logits of one unpadded row at a time: the oracle of scorers and estimators."""

import torch
from lockstitch.rl.scoring import Canvases

PROMPT, CANVAS, N = [5, 6, 7], [21, 9, 33, 12, 30], 4  # the fifth position follows the end, and stays masked


def allowed_logp(denoiser, logits_LV, temperature=1.0, forbids=True):
    """Log-probabilities in which tokens that are never drawn have none, if it `forbids` them."""
    logits_LV = logits_LV.clone()
    if forbids:
        logits_LV[:, [denoiser.mask_id, denoiser.pad_id]] = -torch.inf
    return torch.log_softmax(logits_LV / temperature, -1)


def _additive(seen):
    return torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)[None, None]


def plain_logits(denoiser, ids, seen=None):
    """Logits `(L, V)` of one row, under an explicit mask of what each column sees if the layout is not full."""
    arguments = {} if seen is None else {"attention_mask": _additive(seen)}
    return denoiser.model(input_ids=torch.tensor([ids]), **arguments).logits[0]


def plain_logp(denoiser, prompt, canvas, shown, block=None, temperature=1.0, forbids=True):
    """`log p(token | prompt, shown tokens)` of each canvas position, `(G,)`, differentiable; by a pass for each block.

    In block-wise layouts a block is noised where nothing is shown, sees earlier blocks clean, and later ones do not exist.
    """
    family, width = denoiser.family, len(prompt)
    noised = [token if show else denoiser.mask_id for token, show in zip(canvas, shown, strict=True)]
    if family.layout == "full":
        logp = allowed_logp(denoiser, plain_logits(denoiser, prompt + noised), temperature, forbids)
        return torch.stack([logp[width + i - family.shifted, token] for i, token in enumerate(canvas)])
    lead = width % block if family.layout == "block_causal" and block < len(canvas) else 0
    number = [(width + i - (width - lead)) // block for i in range(len(canvas))]
    out = []
    for now in sorted(set(number)):
        inside = [i for i in range(len(canvas)) if number[i] == now]
        ids = prompt + canvas[: inside[0]] + [noised[i] for i in inside]
        column = torch.arange(len(ids))
        if family.layout == "block_causal":
            of = (column - (width - lead)).div(block, rounding_mode="floor")
            seen = of[None] <= of[:, None]
        else:
            low = width + inside[0] if family.layout == "context_causal" else len(ids)
            seen = (column[None] <= column[:, None]) | (column >= low)[:, None]
        logp = allowed_logp(denoiser, plain_logits(denoiser, ids, seen), temperature, forbids)
        out += [logp[width + i - family.shifted, canvas[i]] for i in inside]
    return torch.stack(out)


def gradients(denoiser, scalar):
    """Of all parameters, in one vector."""
    parameters = [p for p in denoiser.model.parameters() if p.requires_grad]
    found = torch.autograd.grad(scalar, parameters, allow_unused=True, retain_graph=True)
    return torch.cat(
        [torch.zeros_like(p).ravel() if g is None else g.ravel() for p, g in zip(parameters, found, strict=True)]
    )


def close(a, b, atol=1e-5):
    torch.testing.assert_close(a, b, atol=atol, rtol=1e-5)


def label(config):
    """A test's name for an `EstimatorConfig`."""
    return "-".join(
        str(v)
        for v in (
            config.estimator,
            config.mask_schedule,
            config.mask_distribution,
            config.num_samples,
            config.segments,
        )
        if v is not None
    )


def toy(seeds):
    """One row of the same prompt and completion for each seed."""
    rows = len(seeds)
    return Canvases(
        torch.tensor([PROMPT] * rows),
        torch.ones(rows, len(PROMPT)),
        torch.tensor([CANVAS] * rows),
        torch.tensor([[True] * N + [False]] * rows),
        torch.tensor(seeds),
    )
