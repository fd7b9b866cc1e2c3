"""What BIDS names say: which T2w stacks of a folder are of one subject and session, and which file is a stack's mask. Names are enough."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from ..errors import FileError, InputError

ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha")
STACK = re.compile(r"(sub-[A-Za-z0-9]+)(?:_(ses-[A-Za-z0-9]+))?((?:_[a-z]+-[A-Za-z0-9]+)*)_T2w\.nii(?:\.gz)?")
PLACES = ("*", "sub-*/anat/*", "sub-*/ses-*/anat/*")  # all in one folder, or as BIDS has it; derivatives/ is never looked into
MADE = "rec-medfields"  # what our results are called
DERIVED = re.compile(r"_(desc|space|res|den|label)-|_" + MADE)  # no scanner writes these


@dataclass(frozen=True)
class Visit:
    """A subject, or one session of it, and its stacks."""

    subject: str
    session: str  # "" without sessions
    stacks: tuple[Path, ...]

    @property
    def name(self) -> str:
        return "_".join(filter(None, (self.subject, self.session)))

    @property
    def folder(self) -> Path:
        """Where BIDS puts its images, below the folder of the data set."""
        return Path(self.subject, self.session, "anat")


def visits(root: Path) -> tuple[list[Visit], list[str]]:
    """The subjects and sessions with two or more T2w stacks, and what there is to say of what was left out.

    Raises:
        FileError: if there is no such folder.
        InputError: if it holds no such subject.
    """
    if not root.is_dir():
        raise FileError(f"there is no folder {root}", "give the folder that holds sub-.../")
    found: dict[tuple[str, str], dict[str, Path]] = {}
    notes = []
    for path in (p for place in PLACES for p in sorted(root.glob(place), key=_numbered)):
        match = STACK.fullmatch(path.name)
        if not match or DERIVED.search(match[3]) or path.is_dir():
            continue  # a link to nothing, as of git-annex, stays: its subject shall fail, not be made of fewer stacks
        stem, who = path.name.partition(".")[0], (match[1], match[2] or "")
        if not set(path.relative_to(root).parts[:-1]) <= {*who, "anat"}:
            notes.append(f"{path} is called {'_'.join(filter(None, who))} but lies with another: left out")
        elif (known := found.setdefault(who, {}).setdefault(stem, path)) != path:
            notes.append(f"{path} has the name of {known}: left out")
    made = [Visit(*who, tuple(sorted(stacks.values(), key=_numbered))) for who, stacks in sorted(found.items())]
    notes += [f"{visit.name} has one stack only, which cannot tell how its slices moved: left out" for visit in made if len(visit.stacks) == 1]
    if not any(len(visit.stacks) > 1 for visit in made):
        raise InputError(f"no subject in {root} has two T2w stacks" + (f"; {len(made)} have one" if made else ""),
                         "names as in BIDS: sub-01/anat/sub-01_run-1_T2w.nii.gz, with ses-.../ between if there are sessions")
    return [visit for visit in made if len(visit.stacks) > 1], notes


def mask_beside(path: Path) -> Path | None:
    """The mask of an image, beside it or, in a BIDS folder, in `derivatives/*/`: sub-01_run-1_T2w.nii.gz has
    sub-01_run-1_T2w_desc-brain_mask.nii.gz or sub-01_run-1_desc-brain_mask.nii.gz."""
    ending = next((e for e in ENDINGS if path.name.endswith(e)), "")
    stem = path.name[: len(path.name) - len(ending)]
    if not ending:
        return None
    starts = [start for start in (stem, stem.rpartition("_")[0]) if start]
    for folder in (path.parent, *_derived(path)):
        for name in (f"{start}{middle}{ending}" for start in starts for middle in ("_desc-brain_mask", "_mask")):
            found = folder / name
            if found != path and (found.is_file() or found.is_symlink()):  # a link to nothing, too: better no result than one without its mask
                return found
    return None


def _derived(path: Path) -> list[Path]:
    """The folders of derivatives that hold what was made of an image in sub-.../[ses-.../]anat/."""
    place = path.absolute().parent
    subject = next((p for p in (place.parent, place.parent.parent) if p.name.startswith("sub-")), None)
    if place.name != "anat" or subject is None:
        return []
    return sorted((subject.parent / "derivatives").glob(f"*/{place.relative_to(subject.parent)}"))


def _numbered(path: Path) -> list[tuple[int, str]]:
    """Sorts run-2 before run-10."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", path.name)]
