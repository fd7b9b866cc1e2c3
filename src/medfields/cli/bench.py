"""bench: methods and their ablations on real data, one row for each run, and RESULTS.md from the rows."""

from __future__ import annotations

from tyro.conf import Positional


def bench(
    family: Positional[str],
    tasks: tuple[str, ...] = (),
    methods: tuple[str, ...] = (),
    seeds: tuple[int, ...] = (0, 1, 2),
    ablations: bool = True,
    again: bool = False,
) -> int:
    """Run what is missing of a bench and write RESULTS.md again; an interrupted bench goes on where it was.

    Args:
        family: of tasks: superres, motion, sweep, ct, register or ultrasound.
        tasks: names of its tasks; default: all.
        methods: names of methods; default: those that each task asks for.
        seeds: of noise and fit.
        ablations: also run each method without its own idea.
        again: repeat runs that are already in the table.
    """
    from ..evaluate.bench import bench as run

    return 1 if run(family, tasks=tasks, methods=methods, seeds=seeds, ablations=ablations, again=again) else 0
