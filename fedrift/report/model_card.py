"""Export the models of a run with model cards that state the experiment, the losses and the limits of use."""

from __future__ import annotations

import shutil
from pathlib import Path

import yaml

from ..core.errors import UserError
from ..storage import Run
from .format import format_strength, to_yaml

CARD_TEMPLATE = """---
{head}---
# {title}

{kind} by federated learning with fedrift on `{corpus}`: {clients} clients, partition {partition} at
{strength}, algorithm {algorithm}, {rounds} rounds, seed {seed}. The run is `{id}`.

Mean loss on held-out text of all domains: {initial} before training, {last} after training (nats per token){final}.

This model is a research artifact of a single seed. It was trained to study how federated training breaks under non-IID data, and
it is not meant for any other use. The terms of the dataset (`fedrift datasets`) and the license of the base model apply.{warnings}

```python
from peft import PeftModel

model = PeftModel.from_pretrained(base, "{path}")  # base: {base}, loaded with transformers
```

## Configuration of the experiment

```yaml
{experiment}```
"""


def export_models(run: Run, output_dir: Path, base_model_id: str = "", license_id: str = "") -> list[Path]:
    """Copy the models of a finished run to a directory and add a model card to each.

    A single model is copied to ``output_dir`` itself. Several cluster models go to ``output_dir/<cluster>``, and personalized models go to
    ``output_dir/clients/<client>``.

    Args:
        run: The run.
        output_dir: A directory that does not exist or is empty.
        base_model_id: Hub id of the base model, for the card.
        license_id: License of the base model, for the card.

    Returns:
        The directories that hold a model.

    Raises:
        UserError: The run is not finished, a model file was changed since the run ended, or ``output_dir`` is not empty.
    """
    source = run.folder / "model"
    if run.is_finished and not source.is_dir():
        raise UserError(
            f"run {run.id} is finished, but {source} is missing: restore it, or compute the run again with `fedrift run --fresh`"
        )
    if not run.is_finished:
        raise UserError(f"run {run.id} has no models yet because it is {run.status}; repeat its `fedrift run` command to finish it")
    run.check_models()
    if output_dir.exists() and any(output_dir.iterdir()):
        raise UserError(f"the output directory {output_dir} is not empty; choose another one with --output")
    shutil.copytree(source, output_dir, dirs_exist_ok=True)
    folders = sorted(path.parent for name in ("adapter_config.json", "config.json") for path in output_dir.rglob(name))
    for folder in folders:
        (folder / "README.md").write_text(render_card(run, folder.relative_to(output_dir), base_model_id, license_id), encoding="utf-8")
    return folders


def render_card(run: Run, relative_path: Path, base_model_id: str = "", license_id: str = "") -> str:
    """Return the model card of one exported model.

    Args:
        run: The run.
        relative_path: Path of the model within the export, such as ``.``, ``2`` or ``clients/7``.
        base_model_id: Hub id of the base model.
        license_id: License of the base model.
    """
    config, summary = run.config, run.read_json("finished")
    trajectory = run.trajectory()
    loss = trajectory.curve("loss")[trajectory.observed_mask("loss")] if trajectory.has_curve("loss") else []
    is_lora = config["trainable"]["type"] == "Lora"
    description = {"clients": f"the personalized model of client {relative_path.name}", "": "the server's model"}.get(
        relative_path.parts[0] if relative_path.parts else "", f"the model of cluster {relative_path.name}"
    )
    front_matter = {
        "base_model": base_model_id or None,
        "library_name": "peft" if is_lora else "transformers",
        "license": license_id or None,
        "pipeline_tag": "text-generation",
        "tags": ["federated-learning", "fedrift", *(["lora"] if is_lora else [])],
    }
    final = summary.get("final_loss")
    return CARD_TEMPLATE.format(
        head=yaml.safe_dump({key: value for key, value in front_matter.items() if value}, sort_keys=False),
        title=f"{run.id}: {description}",
        kind="Adapters trained" if is_lora else "Weights trained",
        corpus=config["dataset"]["name"],
        clients=config["partition"]["num_clients"],
        partition=config["partition"]["type"],
        strength=format_strength(config["partition"]),
        algorithm=config["algorithm"]["type"],
        rounds=config["training"]["num_rounds"],
        seed=config["seed"],
        id=run.id,
        initial=f"{loss[0]:.3f}" if len(loss) else "not measured",
        last=f"{loss[-1]:.3f}" if len(loss) else "not measured",
        base=base_model_id or config["model"],
        path=relative_path.as_posix(),
        final=f"; {final:.3f} in the final evaluation on more text" if isinstance(final, float) else "",
        warnings="".join(f" {warning[0].upper()}{warning[1:]}." for warning in summary.get("warnings", [])),
        experiment=to_yaml({key: value for key, value in config.items() if key != "id"}),
    )
