"""Interpolation between two classes or prompts, and between the noise of two seeds.

Tokens are discrete, so images between two ends do not fade into one another: what is interpolated
is what the generator is given. Its condition goes along the line between two embeddings, its noise
along an arc between that of two seeds (see `seeds.SeedMix`); the codes drawn from these jump.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

from gear_dist.errors import ConfigError
from gear_dist.inference.seeds import Seed, SeedMix, derive_seeds
from gear_dist.inference.subjects import Subjects
from gear_dist.progress import ImageProgress
from gear_dist.sheets.sheet import Maker, Sheet, SheetImage


class Path(NamedTuple):
    """What a sheet goes along."""

    steps: int
    """Columns, ends included."""
    rows: int
    """Seeds, or steps between two."""
    seed: int
    to_seed: int | None = None
    """Where noise goes: down the rows, or along the only row of a single subject."""

    def check(self, subjects: Subjects) -> None:
        """Refuse what there is no way between.

        Raises:
            ConfigError: neither two subjects nor two seeds.
        """
        count = subjects.num_images
        if count > 2 or (count < 2 and self.to_seed is None):
            raise ConfigError(
                f"interpolation of {count} classes or prompts: name two, or one and --to-seed"
            )


class _Cell(NamedTuple):
    share: float
    """Of the second subject."""
    first_seed: int
    second_seed: int
    seed_share: float

    @property
    def noise(self) -> Seed:
        if self.first_seed == self.second_seed:
            return self.first_seed
        return SeedMix(self.first_seed, self.second_seed, self.seed_share)


def shares(steps: int) -> list[float]:
    """0 to 1 in even steps."""
    return [step / (steps - 1) for step in range(steps)]


def interpolation_sheet(maker: Maker, subjects: Subjects, path: Path) -> Sheet:
    """One image a cell.

    Of two subjects, columns go from the first to the second; rows are seeds derived from the
    path's, or go from its noise to that of `to_seed`. Of one, the only row goes along the noise.

    Raises:
        ConfigError: neither two subjects nor two seeds.
    """
    path.check(subjects)
    grid = _grid(subjects.num_images, path)
    flat = [cell for row in grid for cell in row]
    condition = subjects.mixed(maker.pair, [cell.share for cell in flat])
    progress, done = ImageProgress("sheet", len(flat)), 0

    def report(finished: int) -> None:
        nonlocal done
        progress.advance(finished - done)
        done = finished

    images = maker.pair.generate(
        condition, [cell.noise for cell in flat], maker.sampling, on_batch=report
    )
    progress.finish()
    made = iter(images)
    return Sheet(
        title="Interpolation",
        notes=_notes(subjects, path),
        columns=_columns(subjects, path),
        rows=_rows(subjects, path, grid),
        cells=[
            [[SheetImage(next(made), _facts(maker, subjects, cell))] for cell in row]
            for row in grid
        ],
        facts={"sheet": "interpolation", "seed": path.seed, "to_seed": path.to_seed},
    )


def _grid(num_subjects: int, path: Path) -> list[list[_Cell]]:
    if num_subjects == 1:
        assert path.to_seed is not None
        return [[_Cell(0, path.seed, path.to_seed, share) for share in shares(path.steps)]]
    if path.to_seed is None:
        seeds = derive_seeds(path.seed, range(path.rows))
        down = [(seed, seed, 0.0) for seed in seeds]
    else:
        down = [(path.seed, path.to_seed, share) for share in shares(path.rows)]
    return [[_Cell(share, *noise) for share in shares(path.steps)] for noise in down]


def _facts(maker: Maker, subjects: Subjects, cell: _Cell) -> dict[str, Any]:
    """Settings of a cell; where both are at an end, also the command that makes it."""
    last = subjects.num_images - 1
    facts: dict[str, Any] = {
        "from": subjects.facts(0),
        "to": subjects.facts(last),
        "share": cell.share,
        "seed": cell.first_seed,
        "to_seed": cell.second_seed,
        "seed_share": cell.seed_share,
        "sampling": dataclasses.asdict(maker.sampling),
    }
    if cell.share in (0, 1) and cell.seed_share in (0, 1):
        subject = last if cell.share else 0
        seed = cell.second_seed if cell.seed_share else cell.first_seed
        facts["command"] = maker.command(subjects, subject, seed, maker.sampling)
    return facts


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _columns(subjects: Subjects, path: Path) -> list[str]:
    if subjects.num_images == 1:
        return _ends(f"seed {path.seed}", f"seed {path.to_seed}", shares(path.steps))
    return _ends(subjects.label(0), subjects.label(1), shares(path.steps))


def _ends(first: str, last: str, along: Sequence[float]) -> list[str]:
    return [first, *map(_percent, along[1:-1]), last]


def _rows(subjects: Subjects, path: Path, grid: list[list[_Cell]]) -> list[str]:
    if subjects.num_images == 1:
        return [subjects.label(0)]
    if path.to_seed is None:
        return [f"seed {row[0].first_seed}" for row in grid]
    return _ends(f"seed {path.seed}", f"seed {path.to_seed}", shares(path.rows))


def _notes(subjects: Subjects, path: Path) -> list[str]:
    notes = []
    if subjects.num_images == 2:
        notes.append(
            "Columns: the condition on the line between the embeddings of "
            f"{subjects.label(0)} and {subjects.label(1)}; each row has the same noise."
        )
    if path.to_seed is not None:
        where = "Rows" if subjects.num_images == 2 else "Columns"
        notes.append(f"{where}: noise between that of seeds {path.seed} and {path.to_seed}.")
    return [*notes, "Percent are of the way. Tokens are discrete, so images change in jumps."]
