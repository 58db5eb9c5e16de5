"""The model card of a student in the format of the Hugging Face Hub: YAML metadata, followed by Markdown."""

import json
from collections.abc import Mapping
from typing import Any

from factor_transfer.errors import printable
from factor_transfer.models.zoos import ZOOS
from factor_transfer.report.names import name_of

PAPER = "https://arxiv.org/abs/1802.04977"


def model_card(name: str, config: Mapping[str, Any], facts: Mapping[str, Any], exports: Mapping[str, Any]) -> str:
    """The text of ``README.md``.

    Args:
        name: the name of the model. Characters that are not printable are escaped.
        config: the content of ``config.json``.
        facts: the figures and the origin of the student, see ``package``.
        exports: the records of the exported files by name, see ``export.export_student``.
    """
    name = printable(name)
    return _metadata(name, facts) + "\n".join(
        [
            "",
            f"# {name}",
            "",
            _description(config, facts),
            "",
            *_figures(facts),
            *_exported(exports),
            *_loading(config),
            *_provenance(config, facts),
        ]
    )


def _metadata(name: str, facts: Mapping[str, Any]) -> str:
    """The YAML header. JSON strings are valid YAML strings."""
    data, title = facts["data"]["name"], printable(facts["data"]["title"])
    lines = [
        "---",
        "library_name: factor-transfer",
        "pipeline_tag: image-classification",
        "tags:",
        "- image-classification",
        "- knowledge-distillation",
        "- pytorch",
    ]
    if data not in ("folder", "synthetic"):
        lines += ["datasets:", f"- {json.dumps(data)}"]
    if facts["top1"] is not None:
        lines += [
            "metrics:",
            "- accuracy",
            "model-index:",
            f"- name: {json.dumps(name, ensure_ascii=False)}",
            "  results:",
            "  - task:",
            "      type: image-classification",
            "    dataset:",
            f"      name: {json.dumps(title, ensure_ascii=False)}",
            f"      type: {json.dumps(data)}",
            "      split: test",
            "    metrics:",
            "    - type: accuracy",
            "      name: top-1",
            f"      value: {facts['top1'] / 100:.6g}",
        ]
    return "\n".join([*lines, "---", ""])


def _description(config: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    model, teacher = config["model"], facts["teacher"]
    origin = f" with a {teacher['model']['name']} as the teacher" if teacher else ""
    image = f"of size {' x '.join(str(length) for length in config['image'])}" if config["image"] else "of its data set"
    return (
        f"A {model['name']} that classifies images {image} into {len(config['classes'])} classes ({_classes(config)}). "
        f"It was trained on {printable(facts['data']['title'])} by {name_of(facts['method'])}{origin}, using "
        f"factor-transfer, a library for knowledge distillation by [Factor Transfer]({PAPER})."
    )


def _classes(config: Mapping[str, Any]) -> str:
    names = [str(name) for name in config["classes"]]
    return ", ".join(names[:12]) + (", …" if len(names) > 12 else "")


def _figures(facts: Mapping[str, Any]) -> list[str]:
    rows = [("student", facts["top1"], facts["parameters"], facts["bytes"])]
    teacher = facts["teacher"]
    if teacher:
        rows.append(("teacher", teacher["top1"], teacher["parameters"], teacher["bytes"]))
    lines = ["## Figures", "", "| | top-1 % | parameters | weights, bytes |", "|---|---|---|---|"]
    for name, top1, parameters, size in rows:
        lines.append(f"| {name} | {'not measured' if top1 is None else f'{top1:.2f}'} | {parameters:,} | {size:,} |")
    return [*lines, "", facts["provenance"], ""]


def _exported(exports: Mapping[str, Any]) -> list[str]:
    if not exports:
        return []
    lines = [
        "## Exported files",
        "",
        "| file | top-1 % | equal predictions | largest logit difference | bytes | p50 ms | processor |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, record in exports.items():
        parity = record["parity"]
        lines.append(
            f"| {name} | {parity['top1_file']:.2f} | {parity['equal_predictions']:.2f} % | "
            f"{parity['largest_logit_difference']:.2g} | {record['file']['bytes']:,} | "
            f"{record['costs']['p50_ms']:.3f} | {record['machine']['processor']}, one thread |"
        )
    return [
        *lines,
        "",
        "All test images were run through each file by its own runtime; see `export.json`.",
        "",
    ]


def _loading(config: Mapping[str, Any]) -> list[str]:
    shape = config["image"] or [config["model"]["in_channels"], 32, 32]
    return [
        "## How to load it",
        "",
        "```",
        f"pip install {_requirement(config)}",
        "```",
        "",
        "In this folder, with Python:",
        "",
        "```python",
        "import torch",
        "from factor_transfer import load_student",
        "",
        'student = load_student(".")  # an nn.Module in evaluation mode, including its preprocessing',
        f"images = torch.zeros(1, {', '.join(str(length) for length in shape)}, dtype=torch.uint8)  # raw, 0..255",
        "print(student.classes[student(images).argmax(1)])",
        "```",
        "",
    ]


def _requirement(config: Mapping[str, Any]) -> str:
    """The package to install, with the extra of the model zoo that has the network, if there is one."""
    zoo, colon, _ = str(config["model"]["name"]).partition(":")
    return f"'factor-transfer[{zoo}]'" if colon and zoo in ZOOS else "factor-transfer"


def _provenance(config: Mapping[str, Any], facts: Mapping[str, Any]) -> list[str]:
    versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    return [
        "## Origin",
        "",
        "- `recipe.toml` is the recipe: `factor-transfer run recipe.toml` trains the model again.",
        f"- Trained with {versions}, on {facts['machine']}.",
        f"- Fingerprint (SHA-256) of the training data: `{facts['inputs'].get('data')}`",
        f"- Fingerprint of the teacher: `{facts['inputs'].get('teacher', 'none')}`",
        f"- SHA-256 of the weights file that training wrote: `{config['trained_sha256']}`",
        "",
    ]
