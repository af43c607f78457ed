"""A model card, filled from a run: what was trained on what, how it ended, and what it must not be taken for."""

from __future__ import annotations

import shutil
from pathlib import Path

import yaml

from ..core.errors import UserError
from ..storage import Run
from .format import to_yaml

CARD_TEMPLATE = """---
{head}---
# {title}

{kind} by federated learning with fedrift on `{corpus}`: {clients} clients dealt by {partition} at severity
{severity:g}, algorithm {algorithm}, {rounds} rounds, seed {seed}. Run `{id}`.

Mean loss on held-out text of all domains: {begun} before, {ended} after (nats per token){final}.

A research artefact, of one seed: it was made to study how federated training breaks under non-IID data, and is meant
for nothing else. The text's own terms hold (`fedrift datasets`), and the base model's licence.{caveats}

```python
from peft import PeftModel

model = PeftModel.from_pretrained(base, "{place}")  # base: {base}, as transformers loads it
```

## The whole experiment

```yaml
{experiment}```
"""


def export_models(run: Run, output_dir: Path, base_model_id: str = "", license_id: str = "") -> list[Path]:
    """Copy the models of a finished run to ``out``, each folder with a card of its own; the folders.

    One model lies in ``out``, several (a cluster each) in ``out/<number>``, those of clients in ``out/clients/<client>``.
    ``hub``: the base model's id there, ``licence`` its licence.
    """
    source = run.folder / "model"
    if not run.is_finished or not source.is_dir():
        raise UserError(f"run {run.id} has no models yet: it is {run.status}; the same `fedrift run` command goes on with it")
    run.check_models()
    if output_dir.exists() and any(output_dir.iterdir()):
        raise UserError(f"{output_dir} is there already and not empty; name another folder (--output)")
    shutil.copytree(source, output_dir, dirs_exist_ok=True)
    folders = sorted(path.parent for name in ("adapter_config.json", "config.json") for path in output_dir.rglob(name))
    for folder in folders:
        (folder / "README.md").write_text(render_card(run, folder.relative_to(output_dir), base_model_id, license_id), encoding="utf-8")
    return folders


def render_card(run: Run, relative_path: Path, base_model_id: str = "", license_id: str = "") -> str:
    """The card of the model in ``place``, relative to the export: ``.``, ``2`` or ``clients/7``."""
    said, end = run.config, run.read_json("finished")
    curve = run.trajectory()
    loss = curve.curve("loss")[curve.observed_mask("loss")] if curve.has_curve("loss") else []
    lora = said["trainable"]["type"] == "Lora"
    whose = {"clients": f"the personal model of client {relative_path.name}", "": "the federation's model"}.get(
        relative_path.parts[0] if relative_path.parts else "", f"the model of cluster {relative_path.name}"
    )
    head = {
        "base_model": base_model_id or None,
        "library_name": "peft" if lora else "transformers",
        "license": license_id or None,
        "pipeline_tag": "text-generation",
        "tags": ["federated-learning", "fedrift", *(["lora"] if lora else [])],
    }
    final = end.get("final_loss")
    return CARD_TEMPLATE.format(
        head=yaml.safe_dump({key: value for key, value in head.items() if value}, sort_keys=False),
        title=f"{run.id}: {whose}",
        kind="Adapters trained" if lora else "Weights trained",
        corpus=said["dataset"]["name"],
        clients=said["partition"]["num_clients"],
        partition=said["partition"]["type"],
        severity=said["partition"]["severity"],
        algorithm=said["algorithm"]["type"],
        rounds=said["training"]["num_rounds"],
        seed=said["seed"],
        id=run.id,
        begun=f"{loss[0]:.3f}" if len(loss) else "not measured",
        ended=f"{loss[-1]:.3f}" if len(loss) else "not measured",
        base=base_model_id or said["model"],
        place=relative_path.as_posix(),
        final=f"; {final:.3f} in the larger evaluation at the end" if isinstance(final, float) else "",
        caveats="".join(f" {caveat[0].upper()}{caveat[1:]}." for caveat in end.get("caveats", [])),
        experiment=to_yaml({key: value for key, value in said.items() if key != "id"}),
    )
