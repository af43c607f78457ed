"""Downstream tasks at the end of a run, by lm-evaluation-harness (the package ``lm-eval``)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..core.errors import UserError, default_cache_dir
from ..models.presets import PRESETS, pocket_folder
from ..storage import Run
from .callbacks import Callback

RESULTS_NAME = "lm_eval"  # runs/<id>/lm_eval.json


class LmEval(Callback):
    """A callback that evaluates the final models of a run on tasks of lm-evaluation-harness.

    The results are stored in ``runs/<id>/lm_eval.json``: model folder -> task -> metric -> value. The run itself, its id and its
    records are not changed. A finished run is not evaluated by ``fedrift.run``; ``LmEval(tasks).evaluate(run)`` does it at any time.

    Args:
        tasks: Names of tasks, for example ``["hellaswag", "arc_easy"]``. Their data are downloaded by the harness.
        num_fewshot: Examples before each question; None uses the default of each task.
        limit: Questions per task; None uses all of them.
        batch_size: Questions per forward pass.
        device: The device, for example ``"cuda"``.

    Raises:
        UserError: ``tasks`` is empty.

    Example:
        >>> from fedrift.callbacks import LmEval
        >>> fedrift.run(config, callbacks=[LmEval(["hellaswag"], limit=100)])  # doctest: +SKIP
    """

    def __init__(
        self, tasks: Sequence[str], num_fewshot: int | None = None, limit: int | None = None, batch_size: int = 8, device: str = "cpu"
    ) -> None:
        if isinstance(tasks, str) or not tasks:
            raise UserError(f"LmEval needs a list of tasks, got {tasks!r}; use e.g. LmEval(['hellaswag'])")
        self.tasks, self.num_fewshot, self.limit, self.batch_size, self.device = list(tasks), num_fewshot, limit, batch_size, device

    def on_run_begin(self, event: Any) -> None:
        """Report a missing package before the first round, and not after the last one."""
        import_harness()

    def on_run_end(self, run: Run) -> None:
        """Evaluate the models of the finished run."""
        self.evaluate(run)

    def evaluate(self, run: Run) -> dict[str, dict[str, Any]]:
        """Evaluate the models of a run and store the results.

        Args:
            run: A finished run.

        Returns:
            Model folder relative to the run -> task -> metric -> value.

        Raises:
            UserError: The package ``lm-eval`` is missing, or the run has no models.
        """
        harness = import_harness()
        results = {}
        for folder in model_folders(run):
            output = harness.simple_evaluate(
                model="hf",
                model_args=model_arguments(run, folder),
                tasks=self.tasks,
                num_fewshot=self.num_fewshot,
                limit=self.limit,
                batch_size=self.batch_size,
                device=self.device,
            )
            results[folder.relative_to(run.folder).as_posix()] = output["results"]
        run.write_json(RESULTS_NAME, results)
        return results


def import_harness() -> Any:
    """Import lm-evaluation-harness.

    Raises:
        UserError: The package is missing.
    """
    try:
        import lm_eval
    except ImportError as error:
        raise UserError(
            f"LmEval needs the package 'lm-eval' ({error}): pip install 'lm-eval>=0.4.9', or install fedrift with its extra lm-eval"
        ) from error
    return lm_eval


def model_folders(run: Run) -> list[Path]:
    """Return the folders of the models of a run: ``model``, or ``model/0``, ``model/1`` ... if there are several.

    Personalized models of single clients are left out.

    Raises:
        UserError: The run has no models.
    """
    names = ("adapter_config.json", "config.json")
    folders = sorted({path.parent for name in names for path in (run.folder / "model").rglob(name) if "clients" not in path.parts})
    if not folders:
        raise UserError(f"run {run.id[:6]} has no model in {run.folder / 'model'}; finish it with `fedrift run` first")
    return folders


def model_arguments(run: Run, folder: Path) -> str:
    """Return ``--model_args`` of the harness: ``pretrained=BASE,peft=FOLDER`` for adapters, else ``pretrained=FOLDER``."""
    if not (folder / "adapter_config.json").exists():
        return f"pretrained={folder.resolve()}"
    return f"pretrained={base_model(run, folder)},peft={folder.resolve()}"


def base_model(run: Run, folder: Path) -> str:
    """Return the base model of adapters as transformers finds it: a local folder, or a hub id."""
    name = str(run.config["model"])
    preset = PRESETS.get(name)
    if preset is not None:
        converted = default_cache_dir() / "models" / preset.name
        return str(pocket_folder()) if preset.origin == "package" else str(converted) if converted.is_dir() else preset.hub_id
    if Path(name).is_dir():
        return str(Path(name).resolve())
    return str(json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"])
