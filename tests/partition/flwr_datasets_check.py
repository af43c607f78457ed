"""Check fedrift's partitioners in flwr-datasets' FederatedDataset, and the reverse, in an environment with flwr-datasets.

``test_partitioners.py`` runs it if ``FEDRIFT_FLWR_DATASETS_PYTHON`` names the Python of such an environment; docs/partitioners.md describes
how to make it.
"""

from __future__ import annotations

import csv
import sys
from importlib.metadata import version
from pathlib import Path

from flwr_datasets import FederatedDataset
from flwr_datasets.partitioner import DirichletPartitioner, Partitioner

import fedrift

WORDS = {"sport": "team match coach goal player", "tech": "chip code software device engineer", "food": "onion butter salt bread soup"}


def main(folder: Path) -> None:
    (folder / "topics").mkdir()
    with (folder / "topics" / "train.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["text", "label"])
        for number in range(90):
            topic = list(WORDS)[number % 3]
            words = WORDS[topic].split()
            rows.writerow([" ".join(words[(number * k) % 5] for k in range(1, 12)) + f" number {number}.", topic])
    for partition in (fedrift.TopicMix(num_clients=3, severity=1.0), fedrift.Truncate(num_clients=3, severity=0.8)):
        made = fedrift.partitioner(partition, label_column="label")
        assert isinstance(made, Partitioner) and not made.is_dataset_assigned()
        federated = FederatedDataset(dataset=str(folder / "topics"), partitioners={"train": made}, shuffle=False)
        parts = [federated.load_partition(number) for number in range(3)]
        assert [len(part) for part in parts] == [len(rows) for rows in made.indices] and parts[0].column_names == ["text", "label"]
    theirs = DirichletPartitioner(num_partitions=3, partition_by="label", alpha=0.1, min_partition_size=5, seed=1)
    federated = FederatedDataset(dataset=str(folder / "topics"), partitioners={"train": theirs}, shuffle=False)
    federated.load_partition(0)
    report = fedrift.heterogeneity(federated.partitioners["train"], label_column="label", resplits=5)
    assert report["label.jsd"].is_beyond_chance, report.to_dict()["numbers"]["label.jsd"]
    print(
        f"flwr-datasets {version('flwr-datasets')} with datasets {version('datasets')}: accepted; label.jsd {report['label.jsd'].value:.2f}"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
