"""An X-ray as text for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from shardscope.failures.loop_xray.cause import SetEffect
from shardscope.failures.loop_xray.xray import Xray
from shardscope.visible import on_one_line

BARS = " ▁▂▃▄▅▆▇█"
ROWS = 12  # parts in the table
PICTURED = 24  # copies in the bar picture


def xray_table(found: Xray) -> str:
    """When, who, cause and cure, each a few lines; the strongest parts and every part that breaks the loop."""
    when, cause = found.when, found.cause
    copies = [copy.probability for copy in when.copies[:PICTURED]]
    first, last = when.copies[0], when.copies[-1]
    lines = [
        f"loop      {when.repeats:.1f} copies of {when.period} tokens from token {when.onset} of the output on "
        f"({when.kind}): {one_line(when.text, 60)}",
        f"grows     probability of its tokens copy by copy |{''.join(map(bar, copies))}| "
        f"{first.probability:.2f} to {last.probability:.2f}, entropy {first.entropy:.1f} to {last.entropy:.1f} bits, "
        f"smallest gap {last.least_gap:.2f} before {one_line(last.other_text, 20)}",
        f"verdict   {cause.verdict}: {cause.reason}",
        "",
        f"{'part':<8}{'layer':<9}{'effect':>8}  {'95 % interval':<17}{'looks back':>10}{'writes':>8}  without it",
    ]
    by_name = {part.name: part for part in found.who.parts}
    strongest = sorted(cause.parts, key=lambda part: part.effect)
    shown = [part for place, part in enumerate(strongest) if place < ROWS or part.broken]
    for part in shown:
        suspect = by_name[part.name]
        looks = "" if suspect.attention_all_copies is None else f"{suspect.attention_all_copies:.2f}"
        lines.append(
            f"{part.name:<8}{part.layer_kind:<9}{part.effect:>+8.2f}  {span(part.interval):<17}{looks:>10}"
            f"{suspect.attribution:>+8.2f}  {part.outcome}"
        )
    back = [part for part in cause.parts if part.interval.low > 0]
    if back:
        held = ", ".join(f"{part.name} {part.effect:+.2f}" for part in sorted(back, key=lambda part: -part.effect)[:3])
        lines.append(f"holding the loop back: {held}")
    lines += ["", set_line("smallest set", cause.smallest)]
    if cause.random_control is not None:
        lines.append(
            control_line(cause.random_control.broken, cause.random_control.sets, cause.random_control.interval)
        )
    lines += [
        set_line("heads that look back most", cause.copying),
        control_line(cause.copying_control.broken, cause.copying_control.sets, cause.copying_control.interval),
    ]
    if cause.patching is not None:
        patching = cause.patching
        lines.append(
            f"patched into {patching.runs} clean runs: the loop comes in {patching.brought}, log-odds "
            f"{patching.effect:+.2f} {span(patching.effect_interval)}; random parts {patching.random_brought}, "
            f"{patching.random_effect:+.2f}"
        )
    lines += ["", f"{'remedy':<26}{'texts that loop':<17}{'95 % interval':<17}held-out loss"]
    for cure in found.cures:
        name = cure.remedy if not cure.setting else f"{cure.remedy} {cure.setting:g}"
        name = f"without {', '.join(cure.parts)}" if cure.parts else name
        looping = f"{cure.looping} of {cure.texts}"
        lines.append(f"{name:<26}{looping:<17}{span(cure.interval):<17}{cure.loss:.3f} ({cure.cost:+.3f})")
    return "\n".join(line.rstrip() for line in lines)


def set_line(name: str, effect: SetEffect | None) -> str:
    if effect is None:
        return f"{name}: none found that breaks the loop"
    return (
        f"{name}: {', '.join(effect.parts)}; breaks the loop from {effect.broken} of {effect.starts} starts "
        f"{span(effect.interval)}, log-odds {effect.effect:+.2f} {span(effect.effect_interval)}, "
        f"held-out loss {effect.held_out_cost:+.3f}"
    )


def control_line(broken: int, sets: int, interval: Sequence[float]) -> str:
    return f"  random sets like it: {broken} of {sets} break the loop {span(interval)}"


def span(interval: Sequence[float]) -> str:
    return f"[{interval[0]:.2f}, {interval[1]:.2f}]"


def bar(share: float) -> str:
    """A block as high as the share."""
    return BARS[round(min(1.0, max(0.0, share)) * (len(BARS) - 1))]


def one_line(text: str, width: int) -> str:
    """A text within one line, quoted; what does not fit is cut."""
    flat = on_one_line(text)
    return f"“{flat if len(flat) <= width else flat[: width - 1] + '…'}”"
