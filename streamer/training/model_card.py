"""A model card (Mitchell et al., 2019): what a member is, was trained and measured on, and is not for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from streamer.manifest import Manifest
from streamer.terminal import duration
from streamer.training.config import TrainConfig
from streamer.training.figures import ENSEMBLE, Evaluation
from streamer.training.report import templates
from streamer.training.words import curve_in_words, interval, number, percent
from streamer.whole_file import write_whole

WARNING = (
    "**Measure it on data of your own before anyone relies on it.** Of other cameras, people and fakes than "
    "those of its data expect less. What it says of a video is a hint, never evidence."
)

SHIPPED_WARNING = (
    "**Fine-tune it before anyone relies on it.** It was trained on a small collection of photographs and on "
    "fakes made from them, not on DFDC or FaceForensics++. What it says of a video is a hint, never evidence."
)
"""Of the members in the repository."""

GOOD_FOR = (
    "trying out the service with scores that mean something",
    "a start for fine-tuning on data of your own",
    "fakes that were blended into a real picture, as face swaps and reenactment are, at the compression and "
    "resolution for which the figures above are good",
)

NOT_FOR = (
    "decisions about people without a human who looks at the video",
    "wholly synthetic faces (StyleGAN, diffusion): nothing was blended in them, and blending is what it "
    "looks for",
    "altered voices, lips that do not fit the words, cuts, false context: it sees single frames alone",
    "attackers who know it: nothing was done against adversarial changes",
    "people, cameras, make-up, glasses, masks, filters and lighting that are rare in its data; how its "
    "errors are spread over skin colour, age and sex was not measured",
)


@dataclass(frozen=True, slots=True)
class TrainingFacts:
    """How a member came to be."""

    data: tuple[str, ...]
    """What it was trained on, a sentence each: number, kind, source."""
    licence_of_data: str
    """A sentence on the terms of the data."""
    command: str
    """That trained it."""
    config: TrainConfig
    steps: int
    """Finished at the checkpoint that was kept."""
    seconds: float
    device: str
    """In words."""
    validation: str
    """Metrics of training's own validation, in words; may be empty."""
    file: str
    """How the weights are stored and what that changes, `Exported.in_words()`."""


@dataclass(frozen=True, slots=True)
class FineTuning:
    """One way to fine-tune."""

    words: str
    commands: str
    """Lines for a shell."""


def model_card(
    manifest: Manifest,
    evaluation: Evaluation,
    facts: TrainingFacts,
    fine_tune: Sequence[FineTuning],
    *,
    warning: str = WARNING,
) -> str:
    """The card, Markdown. The evaluation must have measured the member under its name: else TrainingError."""
    others = (ENSEMBLE,) if len(evaluation.members) > 1 else ()
    text = (
        templates()
        .get_template("model_card.md.j2")
        .render(
            manifest=manifest,
            evaluation=evaluation,
            facts=facts,
            fine_tune=fine_tune,
            warning=warning,
            good_for=GOOD_FOR,
            not_for=NOT_FOR,
            others=others,
            curves_by_set=[(on, list(c)) for on, c in groupby(evaluation.curves, key=lambda curve: curve.on)],
            curve_in_words=curve_in_words,
            duration=duration,
            interval=interval,
            number=number,
            percent=percent,
        )
    )
    return re.sub(r"\n{3,}", "\n\n", text)


def write_model_card(card: str, manifest_path: Path) -> Path:
    """Write the card beside the manifest, `NAME.md`; returns its path."""
    path = manifest_path.with_suffix(".md")
    write_whole(path, card.encode())
    return path
