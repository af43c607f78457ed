"""Test the YAML reader: the types of YAML 1.2, limits, and that any text gives values or one line of refusal."""

from __future__ import annotations

import os
from dataclasses import fields

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from fedrift.config.loader import MAX_BYTES, dump_yaml, load_yaml, parse_yaml
from fedrift.config.schema import ExperimentConfig, parse_config
from fedrift.core.errors import MAX_ECHO_CHARS, UserError, quote_value
from fedrift.studies import Study, parse_study


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1:30", "1:30"),
        ("010", 10),
        ("0o10", 8),
        ("0x10", 16),
        ("1_000", "1_000"),
        ("+5", 5),
        ("-0", 0),
        ("2001-01-01", "2001-01-01"),
        ("yes", "yes"),
        ("no", "no"),
        ("on", "on"),
        ("Off", "Off"),
        ("y", "y"),
        ("true", True),
        ("False", False),
        ("~", None),
        ("Null", None),
        ("", None),
        ("1e-3", 1e-3),
        ("1e5", 1e5),
        (".5", 0.5),
        ("5.", 5.0),
        ("1.5E+3", 1500.0),
        (".inf", float("inf")),
        ("-.Inf", float("-inf")),
        ("0b11", "0b11"),
        ("=", "="),
        ("'5'", "5"),
        ("1" * 5000, "1" * 5000),
    ],
    ids=str,
)
def test_values_have_the_types_of_yaml_1_2(text, value):
    found = parse_yaml(text, "text")
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("value", ["yes", "1e5", "010", "0o7", "1:30", "null", "~", "2001-01-01", ".nan", "", "5", 5, 1e-5, True, None])
def test_written_values_are_read_back_equal(value):
    assert parse_yaml(dump_yaml({"key": [value]}), "text") == {"key": [value]}


def nested_aliases(times: int) -> str:
    """Return aliases of aliases with 10 to the power of ``times`` values."""
    return "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 10)}]\n" for k in range(1, times)
    )


REFUSED = {
    "seed: 1\nseed: 2": "line 2, column 1: the key 'seed' is given twice",
    "training: {local_steps: 1, local_steps: 2}": "the key 'local_steps' is given twice",
    "a: " + "[" * 3000 + "]" * 3000: "more than 50 nested lists or mappings",
    "{" * 100_000: "more than 50 nested lists",
    "- " * 100_000: "more than 50 nested lists",
    nested_aliases(8): "more than 20,000 values",
    "- &a x\n" + "- *a\n" * 30_000: "more than 20,000 values",
    "a: &a [*a]": "is inside the value that it refers to",
    "a: *b": "undefined alias 'b'",
    "x: &x {a: 1}\nb: {<<: *x}": "the merge key <<",
    "a: !!python/object/apply:os.system [ls]": "tags are not supported",
    "a: !own 1": "tags are not supported",
    "[1, 2]: x": "a list or a mapping is used as a key",
    "{a: 1}: x": "a list or a mapping is used as a key",
    "---\na: 1\n---\nb: 2": "another document",
    "plan: {steps: 1\nmodel: x": "line 2, column 6: expected ',' or '}'",
    "plan:\n\tsteps: 1": "line 2, column 1",
    "model: a\0b": "the character 0 at position 8 is not allowed",
    'model: "\\UFFFFFFFF"': "is not valid YAML",
    "a" * 300_000: "at most 250,000 are allowed",
}


@pytest.mark.parametrize("text", REFUSED, ids=range(len(REFUSED)))
def test_unsupported_yaml_is_refused_in_one_line_with_its_place(text):
    with pytest.raises(UserError) as raised:
        parse_yaml(text, "the file")
    said = str(raised.value)
    assert REFUSED[text] in said
    assert said.startswith("the file ") and len(said.splitlines()) == 1 and len(said) < 250


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.mkdir(), "it is a folder"),
        (os.mkfifo, "it is not a regular file"),
        (lambda path: path.write_bytes("dataset: bbc".encode("utf-16")), "not a text file in UTF-8"),
        (lambda path: path.write_bytes(b"corpus: caf\xe9"), "not a text file in UTF-8"),
        (lambda path: path.write_bytes(b" " * (MAX_BYTES + 1)), "at most 250,000 are allowed"),
        (lambda path: None, "No such file"),
    ],
)
def test_a_file_that_is_not_yaml_is_refused(make, message, tmp_path):
    path = tmp_path / "experiment.yaml"
    make(path)
    with pytest.raises(UserError, match=message) as raised:
        load_yaml(path)
    assert len(str(raised.value).splitlines()) == 1


def test_a_byte_order_mark_is_not_part_of_the_first_key(tmp_path):
    path = tmp_path / "experiment.yaml"
    path.write_bytes(b"\xef\xbb\xbfdataset: bbc")
    assert load_yaml(path) == {"dataset": "bbc"}


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b"])
def test_an_invalid_file_name_is_refused(name, tmp_path):
    with pytest.raises(UserError) as raised:
        load_yaml(tmp_path / name)
    assert len(str(raised.value)) < 400


SHOWN = [
    (None, "null"),
    (True, "true"),
    (float("inf"), ".inf"),
    (float("nan"), ".nan"),
    ("a", "'a'"),
    (1.5, "1.5"),
    ([1, "a"], "[1, 'a']"),
    ("x" * 5000, f"'{'x' * 40}' and 4,960 more characters"),
    (10**5000, "a whole number of about 5,001 digits"),
]


def test_a_message_repeats_at_most_80_characters_of_a_value():
    for value, shown in SHOWN:
        assert quote_value(value) == shown
        for long in ([value] * 1000, {"key": [value] * 50}, [[[[[value]]]]]):
            assert len(quote_value(long)) <= MAX_ECHO_CHARS


# Arbitrary text from the characters of YAML, and wrongly combined parts of experiments and studies.
WORDS = (
    "dataset bbc training local_steps client_optimizer type Sgd lr algorithm FedProx mu partition num_clients trainable "
    "target_modules evaluation probes fork seed "
    "clustering name base factors seeds tuning space more stages design hypotheses outcomes set"
).split()
MARKS = [": ", ": ", "\n", "\n  ", "- ", ", ", "&a ", "\x07", "\u2028", "\ufeff"] + (
    "[ ] { } *a !! | > ' \" # % ? --- 1e400 .nan -.inf 1:30 true null 999999999999999999999999999999 0 -1 0.5 é << ."
).split()
PIECES = WORDS + MARKS
TEXTS = st.one_of(
    st.text(st.sampled_from(list("abc:-[]{},&*!|>'\"%@`#?~ \n\t0159.eE+_\\xuU")), max_size=80),
    st.lists(st.sampled_from(PIECES), max_size=40).map("".join),
    st.text(max_size=60),
)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(["Sgd", "FedProx", "TopicMix", "bbc", "main", "type", "x" * 5000]),
)
KEYS = st.sampled_from(WORDS) | st.text(max_size=5) | st.integers()
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=12)


def check_reading(read, *args) -> None:
    """Check that reading gives values or a refusal whose lines name what is wrong, and raises nothing else."""
    try:
        found = read(*args)
    except UserError as error:
        lines = str(error).splitlines()
        assert 1 <= len(lines) <= 21
        assert all(len(line) < 1000 for line in lines)
    else:
        assert found is None or not isinstance(found, (ExperimentConfig, Study)) or found.to_dict()


def experiment_of(text: str) -> ExperimentConfig:
    said = parse_yaml(text, "the file")
    return parse_config(said if isinstance(said, dict) else {"dataset": said})


def study_of(text: str) -> Study:
    said = parse_yaml(text, "the file")
    return parse_study({"name": "a", "base": {"dataset": "bbc"}, **(said if isinstance(said, dict) else {"factors": said})})


@settings(max_examples=200, derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
@given(TEXTS)
@example("a: *a\n&a b: c")
def test_any_text_is_an_experiment_and_a_study_or_is_refused(text):
    check_reading(experiment_of, text)
    check_reading(study_of, text)


EXPERIMENT_KEYS = [field.name for field in fields(ExperimentConfig)]
STUDY_KEYS = [field.name for field in fields(Study)]


@settings(max_examples=100, derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.dictionaries(st.sampled_from(EXPERIMENT_KEYS), VALUES, max_size=3),
    st.dictionaries(st.sampled_from(STUDY_KEYS), VALUES, max_size=3),
    st.lists(st.tuples(st.lists(KEYS.map(str), min_size=1, max_size=3).map(".".join), TEXTS).map("=".join), max_size=2),
)
def test_any_values_are_an_experiment_and_a_study_or_are_refused(experiment, study, overrides):
    check_reading(parse_config, {"dataset": "bbc", **experiment}, overrides)
    check_reading(parse_study, {"name": "a", "base": {"dataset": "bbc"}, **study})


def test_every_experiment_is_written_as_it_is_read():
    experiment = parse_config({"dataset": "1e5", "model": "no", "training": {"client_optimizer": {"type": "Sgd", "lr": 1e-5}}})
    assert parse_config(parse_yaml(dump_yaml(experiment.to_dict()), "text")) == experiment
    assert yaml.safe_load(dump_yaml({"a": 1e-5})) == {"a": 1e-5}
