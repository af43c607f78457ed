"""Test that the conditions of `fedrift demo` are valid, and that its table and sentences follow from the runs."""

from __future__ import annotations

from dataclasses import replace

from fedrift.cli.demo import (
    ALGORITHMS,
    BROKEN,
    CONTROL,
    IID,
    REPAIRS,
    Outcome,
    describe_outcomes,
    draw_outcomes,
    make_conditions,
    print_outcomes,
)

OUTCOMES = {
    IID: Outcome([4.5, 4.3, 4.2], 4.25, 4.25),
    CONTROL: Outcome([4.5, 4.4, 4.2], 4.27, 4.5),
    BROKEN: Outcome([4.5, 4.9, 4.6], 4.65, 4.8),
    ALGORITHMS[0]: Outcome([4.5, 4.8, 4.6], 4.6, 4.8),
    ALGORITHMS[1]: Outcome([4.5, float("nan"), float("inf")], float("inf"), 4.9),
    REPAIRS[0]: Outcome([4.5, 4.4, 4.3], 4.35, 4.7),
    REPAIRS[1]: Outcome([4.5, 4.6, 4.6], 4.6, 4.4),
}


def test_the_conditions_differ_in_one_setting():
    conditions = make_conditions()
    assert set(conditions) == set(OUTCOMES) and len({config.id for config in conditions.values()}) == 7
    base = conditions[BROKEN]
    for name, config in conditions.items():
        assert (config.training, config.seed, config.dataset, config.model) == (base.training, base.seed, base.dataset, base.model), name
    assert conditions[IID] == base.iid_baseline() and conditions[CONTROL].partition.homogeneous


def test_the_sentences_state_what_failed_and_what_repaired_it():
    words = " ".join(describe_outcomes(OUTCOMES))
    assert "over rounds 1 to 2 FedAvg has perplexity 105, above the untrained model (90). The worst round has 134, the last" in words
    assert (
        f"With repairs: {REPAIRS[0]}: 77, {REPAIRS[1]}: 99. {REPAIRS[0]} repairs at least half of the difference to the mixed styles."
        in words
    )
    assert (
        "None repairs half of the difference to the mixed styles." in words
        and f"The lowest of all algorithms and repairs there is {REPAIRS[1]}: 81" in words
        and "one seed" in words
    )


def test_a_repair_below_the_controls_is_described_in_words(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    outcomes = {
        **OUTCOMES,
        REPAIRS[0]: replace(OUTCOMES[REPAIRS[0]], final_loss=4.2),
        REPAIRS[1]: replace(OUTCOMES[BROKEN], final_loss=4.8),
    }
    words = " ".join(describe_outcomes(outcomes))
    assert f"{REPAIRS[0]} repairs all of the difference and ends below the mixed styles and the IID baseline." in words
    print_outcomes(outcomes)
    rows = {name: row for row in capsys.readouterr().out.splitlines() for name in outcomes if row.strip().startswith(f"{name}  ")}
    assert " all " in rows[REPAIRS[0]] and " none " in rows[REPAIRS[1]] and "13 %" in rows[ALGORITHMS[0]]
    assert not any("%" in rows[name] for name in REPAIRS)
    outcomes[REPAIRS[0]] = replace(OUTCOMES[REPAIRS[0]], final_loss=4.26)
    assert "ends below the mixed styles." in " ".join(describe_outcomes(outcomes))


def test_a_null_result_is_reported_as_such():
    outcomes = {name: replace(OUTCOMES[IID]) for name in OUTCOMES}
    words = " ".join(describe_outcomes(outcomes))
    assert words.count("None repairs half of the difference to the mixed styles.") == 2 and "not above the untrained model" in words


def test_the_picture_shows_the_failure_its_controls_and_the_repair(tmp_path):
    drawn = draw_outcomes(OUTCOMES, tmp_path / "new" / "perplexity.svg").read_text()
    assert all(f">{name}</text>" in drawn for name in (IID, CONTROL, BROKEN, REPAIRS[0]))


def test_the_table_fits_80_columns(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    print_outcomes(OUTCOMES)
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80 and all(name in shown for name in OUTCOMES)
