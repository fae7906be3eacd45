"""A member's model card from its manifest, its checkpoint and an evaluation."""

from __future__ import annotations

from pathlib import Path

from streamer.manifest import read_manifest
from streamer.training.figures import read_evaluation
from streamer.training.model_card import (
    SHIPPED_WARNING,
    WARNING,
    FineTuning,
    TrainingFacts,
    model_card,
    write_model_card,
)

RECIPES = {
    "mobilenet_v2": "light",
    "mobilenet_v2_sharp": "light_sharp",
    "mobilenet_v2_compressed": "light_compressed",
    "efficientnet_lite0": "light",
    "resnext_mobilenet": "graft",
    "densenet_efficientnet": "graft",
}
"""Shipped member or its architecture -> recipe; others are called after the architecture."""


def write_card(
    manifest_path: Path,
    checkpoint: Path,
    report: Path,
    *,
    data: str,
    licence_of_data: str,
    command: str,
    device: str,
) -> Path:
    """Write a member's model card beside its manifest.

    checkpoint: that it was exported from. report: report.json of an evaluation of the member under its name.
    The others: see `TrainingFacts`. Raises TrainingError, ManifestError.
    """
    from streamer.training.checkpoint import load_checkpoint

    manifest = read_manifest(manifest_path)
    loaded = load_checkpoint(checkpoint)
    size = manifest.path(manifest_path.parent).stat().st_size
    facts = TrainingFacts(
        data=(data,),
        licence_of_data=licence_of_data,
        command=command,
        config=loaded.config,
        steps=loaded.step,
        seconds=loaded.seconds,
        device=device,
        validation=", ".join(f"{name} {value:.3f}" for name, value in loaded.metrics.items()),
        file=f"{size / 1e6:.1f} MB; {manifest.measured}",
    )
    card = model_card(
        manifest,
        read_evaluation(report),
        facts,
        fine_tuning(manifest.name, loaded.config.model.architecture, size=manifest.input.height),
        warning=SHIPPED_WARNING if manifest.name in RECIPES else WARNING,
    )
    return write_model_card(card, manifest_path)


def fine_tuning(name: str, architecture: str, *, size: int) -> tuple[FineTuning, ...]:
    """The commands that go on training a member on each of the two public data sets. size: of its input,
    pixels; that of the recipe may be another."""

    def commands(folder: str, source: str) -> str:
        cache, run = f"cache-{source}", f"runs/{name}-{source}"
        recipe = RECIPES.get(name) or RECIPES.get(architecture, architecture)
        return (
            f"streamer train prepare {folder} --source {source} --cache {cache} --workers 8\n"
            f"streamer train fit recipes/{recipe}.toml --cache {cache} --run {run} "
            f"--set model.architecture={architecture} --set model.start=engines/{name}.json "
            f"--set model.batch_statistics=0 --set input.size={size} --set mixture.dataset_fake=1 "
            f"--set validation.crops=2000 --set validation.patience=10 --set workers=8\n"
            f"streamer train export {run}/best.pt --cache {cache} --name {name}-{source}"
        )

    return (
        FineTuning("On DFDC, folders as they are published:", commands("DFDC", "dfdc")),
        FineTuning(
            "On FaceForensics++, as its download script leaves it, with the official split of its repository "
            "(dataset/splits/*.json) in FACEFORENSICS/splits:",
            commands("FACEFORENSICS", "faceforensics"),
        ),
    )
