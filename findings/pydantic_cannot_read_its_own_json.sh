#!/usr/bin/env bash
# Library: pydantic 2.14.3.
#
# Expected: what model_dump_json writes, model_validate_json of the same model reads, or writing is refused.
# What happens: a float field takes NaN and infinity, model_dump_json writes both as null, and model_validate_json
# refuses null for the same field. model_dump_json raises nothing, so the loss shows when the file is read. With
# ser_json_inf_nan="constants" the round trip works.
# Why it matters: a client's report or a checkpoint's state with one diverged loss is written without an error and
# cannot be read again, at the very moment at which one resumes or looks why it diverged. Whether it was NaN or infinity
# is lost.
#
# Seen on 2026-11-29:
#     2.5: written {"loss":2.5}, read: 2.5
#     nan: written {"loss":null}, read: Input should be a valid number
#     inf: written {"loss":null}, read: Input should be a valid number
#     inf with ser_json_inf_nan='constants': written {"loss":Infinity}, read: inf
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q pydantic==2.14.3
cd "$work"
"$work/venv/bin/python" - <<'PYTHON'
import math
import sys

from pydantic import BaseModel, ConfigDict, ValidationError

class Report(BaseModel):
    loss: float

class Kept(BaseModel):
    model_config = ConfigDict(ser_json_inf_nan="constants")
    loss: float

def round_trip(kind, value):
    text = kind(loss=value).model_dump_json()
    try:
        return text, repr(kind.model_validate_json(text).loss)
    except ValidationError as error:
        return text, error.errors()[0]["msg"]

for value in (2.5, math.nan, math.inf):
    print(f"{value}: written {round_trip(Report, value)[0]}, read: {round_trip(Report, value)[1]}")
print(f"inf with ser_json_inf_nan='constants': written {round_trip(Kept, math.inf)[0]}, read: {round_trip(Kept, math.inf)[1]}")
if round_trip(Report, math.nan) != ('{"loss":null}', "Input should be a valid number") or round_trip(Kept, math.inf)[1] != "inf":
    sys.exit("This is no longer so.")
PYTHON
