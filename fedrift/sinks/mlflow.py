"""MLflow: its own files under the folder of runs, or the server that MLFLOW_TRACKING_URI names."""

from __future__ import annotations

import math
import os
import re

from .sink import Said, Sink

EXPERIMENT = "fedrift"
LONGEST = 500  # characters of a parameter


class Mlflow(Sink):
    """A run of MLflow's for each of ours, found again by its tag."""

    package, pip = "mlflow", "mlflow-skinny"

    def begin(self, run: str, name: str, asked: Said, again: bool) -> None:
        if not os.environ.get("MLFLOW_TRACKING_URI"):
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # its newer versions would rather have a database
            self.module.set_tracking_uri(self.folder.resolve().as_uri())
        self.client = self.module.MlflowClient()
        found = self.client.get_experiment_by_name(EXPERIMENT)
        place = found.experiment_id if found else self.client.create_experiment(EXPERIMENT)
        known = self.client.search_runs([place], f"tags.fedrift = '{run}'")
        if known:
            self.id = known[0].info.run_id
            return
        made = self.client.create_run(place, run_name=f"{name} {run[:6]}", tags={"fedrift": run})
        self.id = made.info.run_id
        for path, value in asked.items():
            self.client.log_param(self.id, named(path), str(value)[:LONGEST])

    def write(self, round: int, numbers: dict[str, float]) -> None:
        metric = self.module.entities.Metric
        now = self.module.utils.time.get_current_time_millis()
        finite = {name: value for name, value in numbers.items() if not math.isnan(value)}
        self.client.log_batch(self.id, [metric(named(name), value, now, round) for name, value in finite.items()])

    def end(self, summary: Said) -> None:
        self.client.set_terminated(self.id, "FINISHED" if summary else "KILLED")


def named(name: str) -> str:
    """Only letters that MLflow allows, and no slash: `loss` and `loss/sport` would be a file and a folder of one name."""
    return re.sub(r"[^\w\-. ]", "_", name.replace("/", " "))
