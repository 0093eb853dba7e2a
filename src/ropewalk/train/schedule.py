"""Learning rate over a run, as a share of the peak."""

import math

from ropewalk.train.spec import Schedule


def share(schedule: Schedule, step: int, steps: int) -> float:
    """Return the learning rate of step 0, 1, ..., steps - 1 divided by its peak.

    Warmup rises linearly from `warmup_from` at step 0 to 1 at step `warmup_steps`; then linear and
    cosine fall to `final` at the last step: a run with `final` 0 does not move in that one.
    """
    if step < schedule.warmup_steps:
        risen = step / schedule.warmup_steps
        return schedule.warmup_from + (1 - schedule.warmup_from) * risen
    falling = steps - 1 - schedule.warmup_steps
    gone = (step - schedule.warmup_steps) / falling if falling > 0 else 0.0
    match schedule.shape:
        case "constant":
            return 1.0
        case "linear":
            return 1 - (1 - schedule.final) * gone
        case "cosine":
            return schedule.final + (1 - schedule.final) * (1 + math.cos(math.pi * gone)) / 2
