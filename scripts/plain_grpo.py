"""The updates of a generation as trainers of diffusion language models are published: what `bench_rl.py` compares with.

d1's way (2504.12216, and its authors' code), written out from its formulas; nothing of `lockstitch` is used. Each pass makes
logits of prompt and canvas, whole, and takes the log-softmax of the canvas's in float32. The sampling policy's likelihoods
are scored for every inner iteration beforehand, the first one too unless it is the only one, and so are the reference's. In
one thing this is lighter than that code, which passes all iterations at once: here they pass one by one.

Left out is how prompts are masked: they come as they are passed.

Axes: T inner iterations, B completions, P prompt columns, G canvas positions, V vocabulary.
"""

from contextlib import nullcontext

import torch


def token_logps(model, prompt_BP, completion_BG, mask_id, forbidden):
    """Mean-field log-probabilities of the completions' tokens, `(B, G)`: the whole canvas is masked."""
    masks_BG = torch.full_like(completion_BG, mask_id)
    logits_BLV = model(input_ids=torch.cat([prompt_BP, masks_BG], 1), use_cache=False).logits
    logits_BGV = logits_BLV[:, -completion_BG.shape[1] :].float()
    logits_BGV[..., forbidden] = -torch.inf
    return logits_BGV.log_softmax(-1).gather(-1, completion_BG[..., None])[..., 0]


def token_loss(logp_BG, old_BG, ref_BG, advantage_B, valid_BG, beta, epsilon):
    """Clipped ratios per token and the k3 divergence, summed over the batch's tokens and divided by their number."""
    ratio_BG, advantage_B1 = (logp_BG - old_BG).exp(), advantage_B[:, None]
    gain_BG = torch.min(ratio_BG * advantage_B1, ratio_BG.clamp(1 - epsilon, 1 + epsilon) * advantage_B1)
    if beta:
        apart_BG = ref_BG - logp_BG
        gain_BG = gain_BG - beta * (apart_BG.exp() - apart_BG - 1)
    return -(gain_BG * valid_BG).sum() / valid_BG.sum()


def plain_generation(
    model,
    reference,
    prompts_TBP,
    completion_BG,
    valid_BG,
    advantage_B,
    optimizer,
    *,
    mask_id,
    forbidden,
    beta,
    epsilon,
    max_grad_norm,
):
    """As many updates as there are sets of masked prompts; returns the losses before each.

    Args:
        model: the policy, trained in place.
        reference: a model, or None for the policy without its adapter.
        prompts_TBP: the prompts, masked anew for each inner iteration.
        completion_BG, valid_BG, advantage_B: the generation.
        optimizer: of the policy's parameters.
        mask_id, forbidden: the mask token, and tokens that have no probability.
        beta, epsilon, max_grad_norm: weight of the divergence, the clip's epsilon, and to what gradients are clipped.
    """
    given = (completion_BG, mask_id, forbidden)
    with torch.no_grad():
        old_T = [token_logps(model, prompt_BP, *given) for prompt_BP in prompts_TBP] if len(prompts_TBP) > 1 else None
        ref_T = [None] * len(prompts_TBP)
        if beta:
            with model.disable_adapter() if reference is None else nullcontext():
                ref_T = [token_logps(reference or model, prompt_BP, *given) for prompt_BP in prompts_TBP]
    losses = []
    for t, prompt_BP in enumerate(prompts_TBP):
        logp_BG = token_logps(model, prompt_BP, *given)
        old_BG = logp_BG.detach() if old_T is None else old_T[t]
        loss = token_loss(logp_BG, old_BG, ref_T[t], advantage_B, valid_BG, beta, epsilon)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses
