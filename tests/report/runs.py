"""Small runs for tests of figures and pages."""

from __future__ import annotations

import math

from fedrift.core.records import Record, Trajectory
from fedrift.report import RunView

DOMAINS = ("business", "sport")


def trajectory(rounds: int = 8, clients: int = 2, lift: float = 0.0, bad: int | None = None) -> Trajectory:
    """Return a trajectory with falling losses; from round ``bad`` on they are NaN."""
    records = []
    for round in range(rounds):
        loss = math.nan if bad is not None and round >= bad else 5.0 - 0.05 * round + lift
        records.append(Record(round, "loss", "", -1, loss))
        records += [Record(round, "loss", domain, -1, loss + 0.1) for domain in DOMAINS]
        for client in range(clients):
            records.append(Record(round, "loss", "", client, loss))
            if round and client != round % clients:
                records += [
                    Record(round, "loss.before", "", client, loss - 0.1),
                    Record(round, "update.norm", "", client, 1 / round),
                    Record(round, "update.cosine", "", client, 0.5),
                ]
        if round and clients:
            records += [Record(round, "update.consensus", "", -1, 0.6), Record(round, "update.divergence", "", -1, 1.2)]
    return Trajectory(records)


def make_view(name: str = "FedAvg", **changes) -> RunView:
    table = {"domains": list(DOMAINS), "tokens": [[900, 0], [0, 1200]]}
    experiment = {"dataset": {"name": "bbc"}, "training": {"num_rounds": 8}, "partition_table": table}
    whole = RunView(name, experiment, trajectory(), trajectory(lift=-0.1), "finished", {"python": "3.11"})
    return whole._replace(**changes)


def make_small_view(name: str = "FedAvg", **changes) -> RunView:
    """Return a view of a run with two charts, for tests that do not depend on the number of charts."""
    losses = Trajectory([record for record in trajectory(clients=0).records if not record.domain])
    return make_view(name, **({"trajectory": losses, "iid_baseline": None} | changes))
