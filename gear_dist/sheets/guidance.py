"""Guidance by temperature: the same subjects and seeds in every cell."""

import dataclasses
from collections.abc import Sequence

from gear_dist.inference.decoding.guidance import check_sampling
from gear_dist.inference.subjects import Subjects
from gear_dist.progress import ImageProgress
from gear_dist.sheets.sheet import Maker, Sheet, SheetImage, short

_LISTED = 8
"""Images of a cell that the sheet names; more are in its JSON."""


def guidance_sheet(
    maker: Maker,
    subjects: Subjects,
    seed: int,
    *,
    guidances: Sequence[float],
    temperatures: Sequence[float],
) -> Sheet:
    """A row for each guidance, a column for each temperature; a cell has an image a subject.

    A cell is what `gear-dist sample` makes of the same subjects and seed with its settings.

    Raises:
        ConfigError: a value out of range, or guidance without a null class; before any image.
    """
    pair, seeds = maker.pair, subjects.seeds(seed)
    grid = [
        [dataclasses.replace(maker.sampling, guidance=g, temperature=t) for t in temperatures]
        for g in guidances
    ]
    for sampling in (each for row in grid for each in row):
        check_sampling(sampling, pair.config.generator, pair.config.tokenizer.codebook_size)
    condition = subjects.condition(pair)
    progress = ImageProgress("sheet", len(guidances) * len(temperatures) * subjects.num_images)
    cells: list[list[list[SheetImage]]] = []
    for row in grid:
        cells.append([])
        for sampling in row:
            images = pair.generate(condition, seeds, sampling)
            progress.advance(len(images))
            settings = dataclasses.asdict(sampling)
            cells[-1].append(
                [
                    SheetImage(
                        image,
                        {
                            **subjects.facts(i),
                            "seed": subjects.asking_seed(i, seeds[i]),
                            "sampling": settings,
                            "command": maker.command(subjects, i, seeds[i], sampling),
                        },
                    )
                    for i, image in enumerate(images)
                ]
            )
    progress.finish()
    shown = [subjects.label(i) for i in range(min(_LISTED, subjects.num_images))]
    if subjects.num_images > _LISTED:
        shown.append(f"and {subjects.num_images - _LISTED} more")
    return Sheet(
        title="Guidance and temperature",
        notes=[
            f"Each cell, row by row: {'; '.join(shown)}.",
            f"The seeds are the same in every cell: those of --seed {seed}.",
        ],
        columns=[_temperature(value) for value in temperatures],
        rows=[f"guidance {short(value)}" for value in guidances],
        cells=cells,
        facts={"sheet": "guidance", "seed": seed},
    )


def _temperature(value: float) -> str:
    return f"temperature {short(value)}" + (" (greedy)" if value == 0 else "")
