"""The X-ray of a loop: when it began, which heads and MLPs write it, which of them it needs, and what takes it away.

    [generation] = generate(model, ["Once upon a time"], SamplingConfig(max_new_tokens=256))
    found = xray(model, generation)      # XrayError if the text does not loop
    found.verdict, found.smallest_set    # ("copy", ["L3H3"])

The stages alone: `find_onset` and `find_suspects` (a second), `find_cause` (the long one), `try_cures`.
"""

from shardscope.failures.loop_xray.cause import Cause, PartEffect, RandomControl, SetEffect, Verdict, find_cause
from shardscope.failures.loop_xray.cures import Cure, try_cures
from shardscope.failures.loop_xray.interventions import Ablation, ablation_bank, switched_off
from shardscope.failures.loop_xray.onset import Onset, find_onset
from shardscope.failures.loop_xray.parts import Part, XrayError, find_parts, parts_of
from shardscope.failures.loop_xray.suspects import Suspect, Suspects, find_suspects
from shardscope.failures.loop_xray.xray import Xray, xray

__all__ = [
    "Ablation",
    "Cause",
    "Cure",
    "Onset",
    "Part",
    "PartEffect",
    "RandomControl",
    "SetEffect",
    "Suspect",
    "Suspects",
    "Verdict",
    "Xray",
    "XrayError",
    "ablation_bank",
    "find_cause",
    "find_onset",
    "find_parts",
    "find_suspects",
    "parts_of",
    "switched_off",
    "try_cures",
    "xray",
]
