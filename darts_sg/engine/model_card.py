"""A run's weights as a folder for the Hugging Face hub: the files, and a model card written from their provenance."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from darts_sg.analysis.cost import count_params
from darts_sg.engine.weights import Weights, read_weights
from darts_sg.errors import UsageError
from darts_sg.files import read_bytes, why
from darts_sg.remote import hub_failure, refuse_missing_hub
from darts_sg.yaml_files import read_yaml

CARD = "README.md"
KEPT = ("weights.safetensors", "genotype.yaml", "result.json")
"""Files of a run that are published. config.yaml stays: it names folders of the machine."""
LARGEST = 1 << 33
PUBLISHED_EPOCHS = {"cifar": 600, "imagenet": 250}
"""Epochs of the trainings that DARTS and its successors report."""


@dataclass(frozen=True)
class Card:
    """A model card and the files that it stands beside, by name."""

    weights: Weights
    files: dict[str, bytes]
    text: str


def make_card(run_dir: Path, repository: str, licence: str) -> Card:
    """The card of a finished retraining. Raises UsageError if `run_dir` is not its folder, or a file is damaged."""
    if not run_dir.is_dir():
        raise UsageError(f"{run_dir} is not a folder: expected that of a finished augment run")
    weights = read_weights(run_dir)
    files = {}
    try:
        for name in KEPT:
            if (run_dir / name).is_file():
                files[name] = read_bytes(run_dir / name, LARGEST)
        command = _command(run_dir / "config.yaml")
    except OSError as error:
        raise UsageError(f"{run_dir} cannot be read: {why(error)}") from None
    return Card(weights, files, card_text(weights, repository, licence, command, files))


def _command(config: Path) -> str:
    """The command line of the run, as its config.yaml records it; empty where it records none."""
    if not config.is_file():
        return ""
    found: Any = read_yaml(config)
    environment = found.get("environment") if isinstance(found, dict) else None
    return str((environment or {}).get("command") or "") if isinstance(environment, dict) else ""


def _train_images(result: bytes) -> str:
    """The number of training images that a run's result.json records, in words; empty where it records none."""
    try:
        found = json.loads(result or b"{}").get("train_images")
    except (ValueError, AttributeError, RecursionError):
        return ""
    return f"{found:,} training images, " if isinstance(found, int) else ""


def card_text(weights: Weights, repository: str, licence: str, command: str, files: Mapping[str, bytes]) -> str:
    """The card: YAML front matter as the hub reads it, then the facts and what the weights are not."""
    m, figure = weights.metadata, weights.task.headline
    params = count_params(weights.build())
    front = {
        "license": licence,
        "library_name": "darts_sg",
        "pipeline_tag": "object-detection" if m.task == "detection" else "image-classification",
        "tags": ["darts_sg", "neural-architecture-search", weights.trained.name],
        "datasets": [m.dataset],
        "model-index": [
            {
                "name": repository,
                "results": [
                    {
                        "task": {"type": "object-detection" if m.task == "detection" else "image-classification"},
                        "dataset": {"name": weights.data, "type": m.dataset, "split": "test"},
                        "metrics": [{"type": figure.name, "name": figure.title, "value": weights.recorded}],
                    }
                ],
            }
        ],
    }
    rows = {
        "network": weights.title,
        "parameters": f"{params:,}",
        "input": f"{m.in_channels} × {m.image_size} × {m.image_size}, (pixel / 255 - mean) / std with mean "
        f"{', '.join(map(str, m.mean))} and std {', '.join(map(str, m.std))}",
        "outputs": f"{weights.task.num_outputs(weights.spec)} {weights.task.output_unit}",
        "data": weights.data,
        f"{figure.title} on {m.test_images:,} images": figure.text.format(weights.recorded),
        "scale": f"{_train_images(files.get('result.json', b''))}{m.epochs} epochs, one seed",
        "training": f"{weights.history}, PyTorch {m.torch}, {m.git}",
    }
    if m.finetuned_from:
        rows["started from"] = ", ".join(f"{name} {value}" for name, value in m.finetuned_from.items())
    file = "hf://" + repository
    lines = [
        f"# {repository.partition('/')[2]}",
        "",
        f"Weights of {weights.trained.name}, trained with darts_sg {m.darts_sg}.",
        "",
        "| | |",
        "| --- | --- |",
        *(f"| {name} | {_cell(value)} |" for name, value in rows.items()),
        "",
        *([f"Command of the training:\n\n```\n{_fenced(command)}\n```\n"] if command else []),
        "## Use",
        "",
        "```",
        f"darts-sg predict {file} IMAGE …",
        f"darts-sg augment --evaluate {file} --data DIR",
        f"darts-sg augment --finetune {file} --dataset folder --data DIR",
        "```",
        "",
        "## Scale, and what these weights are not",
        "",
        *(f"- {line}" for line in limits(weights)),
        "",
        "## Files",
        "",
        *(f"- `{name}`" for name in sorted(files)),
        "",
        f"Licence of the weights: {licence}. Data sets have licences of their own.",
    ]
    return f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---\n\n" + "\n".join(lines) + "\n"


def limits(weights: Weights) -> list[str]:
    """Limits of the weights, as sentences made from the facts."""
    m = weights.metadata
    found = [f"One training with seed {m.seed}: there is no spread over seeds in the figure above."]
    usual = PUBLISHED_EPOCHS.get(m.network)
    if m.task == "classification" and not m.model and usual and m.epochs < usual:
        found.append(
            f"Trained for {m.epochs} epochs; published figures of such networks come from {usual}. The figure above is "
            "not comparable with them."
        )
    if m.dataset == "synthetic":
        found.append("Trained on rendered images: a check of the program, of no use on photographs.")
    if m.data_note or m.data_remark:
        described = "; ".join(filter(None, (m.data_note, m.data_remark)))
        found.append(f"The data are not quite the published ones: {described}.")
    if m.epoch < m.epochs:
        found.append(f"Saved after epoch {m.epoch} of {m.epochs}.")
    found.append("No claim is made about other data, robustness, fairness or calibrated probabilities.")
    return found


def write_folder(card: Card, folder: Path) -> None:
    """Write the card and the files into a new folder; UsageError if it exists."""
    if folder.exists():
        raise UsageError(f"{folder} exists; choose another --output")
    folder.mkdir(parents=True)
    (folder / CARD).write_text(card.text, encoding="utf-8")
    for name, content in card.files.items():
        (folder / name).write_bytes(content)


def upload(folder: Path, repository: str, *, private: bool) -> str:
    """Create the repository unless it exists, and upload the folder; returns its address. UsageError if that fails."""
    refuse_missing_hub("weights push")
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=str(folder), commit_message="Weights and model card")
    except Exception as error:  # of many kinds, from the hub and from its HTTP client
        raise UsageError(f"weights push: {hub_failure(error, repository)}") from None
    return f"https://huggingface.co/{repository}"


def sha256(content: bytes) -> str:
    """The digest that a download shows."""
    return hashlib.sha256(content).hexdigest()


def _cell(text: str) -> str:
    """A text for a cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|")


def _fenced(text: str) -> str:
    """A text for a block of code, which it cannot end."""
    return " ".join(text.split()).replace("```", "'''")
