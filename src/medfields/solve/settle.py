"""From stacks as they were scanned to slices that lie where the subject was: stacks first, then slices, coarse to fine, with second chances."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.spatial.transform import Rotation

from ..cases.slices import Slices
from ..space.rigid import maps_of, six
from .motion import LIKENESS, Alternation, Found, Level, Poses, laid, placed, rebuilt
from .run import Run

SPREAD = 3.0  # a slice stands out whose likeness is so many standard deviations below the usual
TURNS = 20.0  # degrees by which stacks are turned about each axis to begin with
ASIDE = (6.0, 5.0)  # degrees and mm, standard deviation of the random second chances of a slice
CHANCES = 5  # such places tried


def settled(case: Slices, run: Run, *, levels: Sequence[float] = (1.0, 0.6, 0.4), steps: int = 10, smooth: float = 0.005) -> Found:
    """Where all slices lie.

    Args:
        case: the slices.
        run: the engine; every level is a stage that can be resumed.
        levels: spacings of the lattice from coarse to fine, in units of `coarsest`.
        steps: alternations of subject and poses at each level.
        smooth: weight of the squared gradient of the subject meanwhile.
    """
    mm = [level * coarsest(case) for level in levels]
    poses = aligned(case, run, mm[0])
    rest, found = poses.copy(), Found.at(poses)
    for n, spacing in enumerate(mm):
        state = Alternation(Level.of_spacing(case, spacing, found.poses), found, rest, smooth)
        for step in run.steps(steps, f"poses at {spacing:.1f} mm", state):
            state.step()
            if n < len(mm) - 1 and step in (steps // 2, steps - 1):
                chance(state, np.random.default_rng((n, step)))
            run.report(moved_mm=state.change)
        run.keep(f"poses at {spacing:.1f} mm", state.subject())
        found = state.judged() if n == len(mm) - 1 else state.found()
    return found


def coarsest(case: Slices) -> float:
    """mm, the spacing of the lattice on which slices are laid first: their thickness, or three pixels where that is more."""
    return max(float(np.median(case.thickness)), 3 * case.pixel)


def aligned(case: Slices, run: Run, mm: float, smooth: float = 0.05) -> Poses:
    """Whole stacks laid on the one that moved least within itself: rigid, from several starts; poses of all slices."""
    poses, stack = np.tile(np.eye(4), (len(case.slices), 1, 1)), case.stack
    numbers = np.unique(stack)
    if len(numbers) == 1:
        return poses
    level = Level.of_spacing(case, mm, poses)
    first = max(numbers, key=lambda s: steadiness(case, int(s)))
    weight = torch.from_numpy((stack == first).astype(np.float64))[torch.from_numpy(level.of)].float()
    c = rebuilt(level.operator(poses), level.y, torch.ones_like(level.y), weight, smooth, torch.zeros(level.lattice.shape), 25)
    middles = {s: placed(case.only(stack == s), poses[stack == s]).mean(0) for s in numbers}
    rest = [s for s in numbers if s != first]
    for n in run.steps(len(rest), "stacks"):
        own = stack == rest[n]
        poses[own] = _laid_whole(level.only(own), c, middles[first] - middles[rest[n]], middles[rest[n]])
    state = Alternation(level, Found.at(poses), poses, smooth, np.searchsorted(numbers, stack))
    for _ in run.steps(3, "stacks together", state):
        state.step()
        run.report(moved_mm=state.change)
    run.keep("stacks", state.subject())
    return state.found().poses


def _laid_whole(level: Level, c: torch.Tensor, shift: np.ndarray, middle: np.ndarray) -> Float[np.ndarray, "4 4"]:
    """The rigid map of one stack that is most like the subject c: from where it is and from mass on mass, upright and turned."""
    n = len(level.count)
    turns = [np.zeros(3), *(sign * TURNS * axis for axis in np.eye(3) for sign in (1.0, -1.0))]
    best, most = np.eye(4), -np.inf
    for start in (np.zeros(3), shift):
        for turn in turns:
            m = np.eye(4)
            m[:3, :3] = Rotation.from_rotvec(turn, degrees=True).as_matrix()
            m[:3, 3] = middle + start - m[:3, :3] @ middle
            poses = np.tile(m, (n, 1, 1))
            poses, *_ = laid(level, c, poses, torch.ones_like(level.y), poses, np.zeros(n, int), np.array([0.1]), 0.1, 8)
            alike = float(level.count @ level.likeness(level.operator(poses).apply(c)) / level.count.sum())
            if alike > most:
                best, most = poses[0], alike
    return best


def steadiness(case: Slices, stack: int) -> float:
    """How alike neighbouring slices of a stack are where both show the subject: their mean correlation, weighted by pixels."""
    own = sorted((s for s in case.slices if s.stack == stack), key=lambda s: s.order)
    total, pixels = 0.0, 0
    for a, b in itertools.pairwise(own):
        both = a.mask & b.mask
        if b.order - a.order == 1 and int(both.sum()) > 1:
            pair = torch.stack([a.values[both], b.values[both]])
            r = float(torch.corrcoef(pair)[0, 1])
            total, pixels = total + (r if np.isfinite(r) else 0.0) * int(both.sum()), pixels + int(both.sum())
    return total / pixels if pixels else 0.0


def chance(state: Alternation, rng: np.random.Generator) -> None:
    """Slices that are unlike the subject start again: where their neighbours lie, where their stack does, and from random places around."""
    alike, level, poses = state.likeness.numpy(), state.level, state.poses.numpy().copy()
    usual = float(np.median(alike))
    low = alike < max(LIKENESS, usual - SPREAD * max(1.4826 * float(np.median(np.abs(alike - usual))), 0.01))
    if not low.any() or low.all():
        return
    sub, n = level.only(low), int(low.sum())
    best, most, gain = poses[low], alike[low].copy(), state.gain.numpy().copy()
    found = gain[low]
    for start in _places(state, low, rng):
        tried, own, _ = laid(sub, state.c, start, torch.ones_like(sub.y), start, np.arange(n), np.full(n, 0.1), float(state.noise), 6)
        now = sub.likeness(sub.operator(tried).apply(state.c))
        better = now > most + 0.02
        best, most = np.where(better[:, None, None], tried, best), np.where(better, now, most)
        found = np.where(better, own, found)
    poses[low], gain[low] = best, found
    state.poses, state.gain = torch.from_numpy(poses), torch.from_numpy(gain)


def _places(state: Alternation, low: Bool[np.ndarray, "N"], rng: np.random.Generator) -> list[Float[np.ndarray, "M 4 4"]]:
    """Starts for the slices that stand out."""
    poses, rest, case = state.poses.numpy(), state.rest, state.level.case
    stack, order, middles = case.stack, np.array([s.order for s in case.slices]), state.level.middles
    before, after = [], []
    for n in np.flatnonzero(low):
        good = np.flatnonzero((stack == stack[n]) & ~low)
        ahead, behind = good[order[good] < order[n]], good[order[good] > order[n]]
        before.append(poses[ahead[np.argmax(order[ahead])]] if len(ahead) else rest[n])
        after.append(poses[behind[np.argmin(order[behind])]] if len(behind) else rest[n])
    starts = [np.stack(before), np.stack(after), rest[low]]
    for _ in range(CHANCES):
        m = np.tile(np.eye(4), (int(low.sum()), 1, 1))
        m[:, :3, :3] = Rotation.from_rotvec(rng.normal(0, ASIDE[0], (len(m), 3)), degrees=True).as_matrix()
        m[:, :3, 3] = middles[low] + rng.normal(0, ASIDE[1], (len(m), 3)) - np.einsum("nij,nj->ni", m[:, :3, :3], middles[low])
        starts.append(m @ rest[low])
    return starts


def noted(run: Run, case: Slices, found: Found) -> None:
    """What a method says of the motion: the pose of each slice about the middle of them all, and how far it is believed."""
    run.note(motion={"about": case.middle.tolist(), "poses": six(found.poses, case.middle).tolist(), "gain": found.gain.tolist(),
                     "worth": found.worth.tolist(), "likeness": found.likeness.tolist()})


def told(motion: Mapping[str, Any]) -> Found:
    """What `noted` wrote, read back."""
    worth = (np.array(motion[name], dtype=float) for name in ("gain", "worth", "likeness"))
    return Found(maps_of(np.array(motion["poses"], dtype=float), np.array(motion["about"], dtype=float)), *worth)
