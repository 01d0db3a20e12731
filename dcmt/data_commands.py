"""The commands that make and check data: phantom, manifest, check, split."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path

from knee.errors import Faults, UserError
from knee.grades import load_grade_set
from knee.manifest import read_manifest, write_manifest

Say = Callable[[str], None]


def phantom(options: argparse.Namespace, *, say: Say) -> int:
    """``dcmt phantom``."""
    from knee.phantom import write_phantom

    chosen = {name: getattr(options, name) for name in ("patients", "slices") if getattr(options, name) is not None}
    path = write_phantom(
        options.folder,
        kind=options.kind,
        size=options.size,
        seed=options.seed,
        drawn_masks=options.drawn_masks,
        processes=os.cpu_count() or 1,
        force=options.force,
        **chosen,
    )
    say(f"wrote {path}")
    return 0


def manifest(options: argparse.Namespace, *, say: Say) -> int:
    """``dcmt manifest``."""
    from knee.folders import manifest_from_folder

    grade_set = load_grade_set(options.grade_set)
    target = options.out or options.folder / "manifest.csv"
    table = manifest_from_folder(
        options.folder,
        options.layout,
        relative_to=target.parent,
        pattern=options.pattern,
        grade_count=grade_set.count,
        grade_names=grade_set.names,
    )
    write_manifest(target, table, force=options.force)
    graded = table["grade"].notna()
    counts = table.loc[graded, "grade"].astype(int).value_counts().sort_index()
    by_grade = "  ".join(f"{grade}: {count}" for grade, count in counts.items())
    say(
        f"{len(table)} images of {table['patient'].nunique()} patients; by grade {by_grade}; ungraded: {int((~graded).sum())}"
    )
    if "split" in table and table["split"].ne("").any():
        say("by split " + "  ".join(f"{name}: {count}" for name, count in table["split"].value_counts().items()))
    example = table.iloc[0]
    say(
        f"patient of {example['image']}: {example['patient']}"
        + (f", side {example['side']}" if example["side"] else "")
    )
    say(f"wrote {target}; next: dcmt split {target} --out data_splits/NAME.csv")
    return 0


def check(options: argparse.Namespace, *, say: Say) -> int:
    """``dcmt check``: every fault of a manifest, its images, its masks and a split."""
    from knee.check import check_images, drop_bad
    from knee.splits import read_split

    found = read_manifest(options.manifest, load_grade_set(options.grade_set))
    bad = check_images(found)
    if options.split:
        read_split(options.split, found)
    if not bad:
        say(f"{options.manifest}: {len(found.table)} images, all sound")
        return 0
    if options.skip_bad:
        drop_bad(found, bad, options.skip_bad)
        say(f"{len(bad)} of {len(found.table)} rows are bad; they are listed in {options.skip_bad}")
        return 0
    raise Faults(
        [f"{options.manifest.name} line {row.line}: {row.image}: {row.reason}" for row in bad],
        summary=f"{options.manifest}: {len(bad)} of {len(found.table)} rows are bad; mend them, or go on without by "
        "--data.skip_bad true (train) and --skip-bad FILE (check):",
    )


def split(options: argparse.Namespace, *, say: Say) -> int:
    """``dcmt split``."""
    from knee.splits import make_folds, make_split, write_split

    found = read_manifest(options.manifest, load_grade_set(options.grade_set))
    if options.folds:
        folds = make_folds(found.table, folds=options.folds, seed=options.seed)
        targets = [
            options.out.with_name(f"{options.out.stem}_{number}{options.out.suffix}") for number in range(len(folds))
        ]
        _refuse_existing(targets, force=options.force)
        for target, frame in zip(targets, folds, strict=True):
            write_split(target, frame, force=options.force)
        say(f"wrote {len(folds)} folds: {targets[0]} … {targets[-1].name}")
        return 0
    frame = make_split(found.table, fractions=tuple(options.fractions), seed=options.seed, keep=not options.anew)
    write_split(options.out, frame, force=options.force)
    counts = "  ".join(f"{name}: {count}" for name, count in frame["split"].value_counts().items())
    kept = not options.anew and "split" in found.table and found.table["split"].ne("").any()
    say(f"wrote {options.out} ({counts}){', with the splits that the manifest names' if kept else ''}")
    return 0


def _refuse_existing(targets: list[Path], *, force: bool) -> None:
    there = [target for target in targets if target.exists()]
    if there and not force:
        raise UserError(f"{there[0]} exists already; choose another --out, or overwrite it by --force")
