"""Which block runs when, as data.

A plan is a tuple of steps. A step names a block and what happens at the U-Net skip stack around it: ``pop`` adds the most
recent pushed activation (times a learned per-channel weight, its index given here) before the block, ``push`` stores the
block's output. Depth recurrence and weight sharing are plans that name a block twice; ``position`` tells the times apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True, kw_only=True)
class Step:
    """One application of a block.

    Attributes:
        block: which block.
        push: store the output on the skip stack.
        pop: index of the skip weight with which the top of the stack is added to the input, or None.
        position: index of the loop position that is added to the input, or None.
    """

    block: int
    push: bool = False
    pop: int | None = None
    position: int | None = None

    def __post_init__(self) -> None:
        if self.position is not None and self.position < 0:
            raise ValueError(f"plan position {self.position} must not be negative")


Plan = tuple[Step, ...]


def unet_plan(blocks: int | Sequence[int]) -> Plan:
    """A U-Net (Parameter Golf baseline): the first half pushes, each later step pops while the stack holds something.

    Args:
        blocks: how many blocks, each running once; or the order in which blocks run, which may name one several times (depth
            recurrence, weight sharing).
    """
    order = range(blocks) if isinstance(blocks, int) else blocks
    num_encoder = len(order) // 2
    return tuple(
        Step(block=block, push=i < num_encoder, pop=i - num_encoder if num_encoder <= i < 2 * num_encoder else None)
        for i, block in enumerate(order)
    )


def looped_plan(blocks: int, positions: Sequence[int]) -> Plan:
    """The whole U-Net once for every loop position, with the same blocks and skip weights each time (PR #578's "fractal" models)."""
    once = unet_plan(blocks)
    return tuple(replace(step, position=position if i == 0 else None) for position in positions for i, step in enumerate(once))


def check_plan(plan: Plan) -> None:
    """Raises ValueError where a block is skipped over, or a pop meets an empty stack."""
    if not plan:
        raise ValueError("plan is empty; give at least one step")
    used = sorted({step.block for step in plan})
    if used != list(range(len(used))):
        raise ValueError(f"plan uses blocks {used}; blocks must be numbered 0, 1, 2, … without a gap")
    pops = [step.pop for step in plan if step.pop is not None]
    if sorted(set(pops)) != list(range(len(set(pops)))):
        raise ValueError(f"plan uses skip weights {sorted(set(pops))}; they must be numbered 0, 1, 2, … without a gap")
    held = 0
    for i, step in enumerate(plan):
        if step.pop is not None:
            held -= 1
            if held < 0:
                raise ValueError(f"plan step {i} pops from an empty skip stack")
        held += step.push
    if held:
        raise ValueError(f"plan leaves {held} pushed activations unused; give as many pops as pushes")


def num_blocks(plan: Plan) -> int:
    return 1 + max(step.block for step in plan)


def num_skips(plan: Plan) -> int:
    return len({step.pop for step in plan if step.pop is not None})


def num_positions(plan: Plan) -> int:
    """How many loop positions the plan asks for."""
    return 1 + max((step.position for step in plan if step.position is not None), default=-1)
