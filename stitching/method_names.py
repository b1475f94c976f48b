"""The names of the methods, in the order of the tables, and which of them cannot run on an input. Imports no model."""

from collections.abc import Sequence

METHODS = (
    "greedy",
    "single",
    "majority_vote",
    "best_of_n",
    "weighted_vote",
    "best_of_n_refine",
    "remask_loop",
    "value_guided_reveal",
    "vgb_momentum",
    "guided_remask",
    "plan_then_diffuse",
    "all_traces",
    "solver_alone",
    "stitched",
    "stitched_wide",
)
ASKED_FOR = ("value_guided_reveal", "vgb_momentum", "guided_remask", "plan_then_diffuse", "stitched_wide")
USUAL = tuple(name for name in METHODS if name not in ASKED_FOR)  # what runs where nothing is asked for
WALKS = ("value_guided_reveal", "vgb_momentum")
DENOISING = (
    "greedy",
    "best_of_n_refine",
    "remask_loop",
    *WALKS,
    "guided_remask",
    "plan_then_diffuse",
    "stitched_wide",
)
SCORED_ALONE = ("best_of_n_refine", "remask_loop", *WALKS, "guided_remask", "plan_then_diffuse", "stitched_wide")
WIDE = 4  # canvases a round of stitched_wide, where N is 8 or more


def absent(
    *, samples: bool, solves: bool, comparing: str | None = None, methods: Sequence[str] = USUAL
) -> dict[str, str]:
    """Of the methods those that cannot run, each with the reason.

    Args:
        samples: whether there is a diffusion model.
        solves: whether there is a solver.
        comparing: the scorer, where it compares trajectories that stand side by side.
        methods: those that are asked for.
    """
    reasons: dict[str, str] = {}
    if comparing is not None:
        why = (
            f"scorer {comparing!r} compares N trajectories, and a canvas that is denoised by itself has none beside it"
        )
        reasons |= dict.fromkeys(SCORED_ALONE, why)
    if not samples:
        why = "the trajectories were sampled elsewhere: there is no diffusion model to denoise with"
        reasons |= dict.fromkeys(DENOISING, why)
    if not solves:
        reasons |= dict.fromkeys(("all_traces", "solver_alone"), "no solver was given")
    return {name: reasons[name] for name in METHODS if name in reasons and name in methods}
