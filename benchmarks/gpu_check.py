"""Does this device compute what it should? Each line a figure beside the most that rounding makes of it.

    make gpu-check            (python benchmarks/gpu_check.py [--device cuda] [--small])

Stacked clients against one client after another, and against transformers + peft; the device against the CPU; bfloat16 and tf32
against float32; the same step twice; a run that was interrupted against one that was not; runs trained together against the
same runs alone; quantised bases, evaluated first. Ends with exit code 1 where a figure is too large.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from time import perf_counter

from check_runs import resumes, together_is_alone
from check_steps import (
    Found,
    Where,
    bfloat16_is_near,
    compiled_is_plain,
    device_is_cpu,
    quantised_learn_after_an_evaluation,
    same_step_twice,
    stacked_is_one_by_one,
    stacked_is_peft,
    tf32_is_near,
)
from machine import machine, options, write

from fedrift.runtime import Runtime, speed_up

CHECKS: tuple[Callable[[Where], Iterator[Found]], ...] = (
    stacked_is_one_by_one, stacked_is_peft, device_is_cpu, bfloat16_is_near, tf32_is_near, same_step_twice, resumes,
    together_is_alone, quantised_learn_after_an_evaluation)


def main(words: list[str] | None = None) -> int:
    ask = options(__doc__ or "", "cuda")
    ask.add_argument("--compile", action="store_true", help="also compare compiled blocks (a minute)")
    said = ask.parse_args(words)
    runtime = Runtime(device=said.device)
    runtime.begin()
    where = Where(runtime.torch_device(), said.small)
    found: list[Found] = []
    failed: dict[str, str] = {}
    for check in (*CHECKS, *([compiled_is_plain] if said.compile else [])):
        begun = perf_counter()
        try:
            for each in check(where):
                found.append(each)
                print(f"{'ok' if each.fine else 'WRONG':5}  {each.got:8.1e}  at most {each.most:7.0e}  {each.check}", flush=True)
        except Exception as error:  # the others are still to be heard
            failed[check.__name__] = f"{type(error).__name__}: {error}"
            print(f"WRONG  {check.__name__}: {failed[check.__name__]}", flush=True)
        print(f"       {perf_counter() - begun:.1f} s", flush=True)
    fine = not failed and all(each.fine for each in found)
    print(write(said.out, f"gpu-check-{where.device.type}{'-small' if said.small else ''}", {
        **machine(where.device), "small": said.small, "fine": fine,
        "bfloat16_against_float32_products": round(speed_up(where.device), 2), "deterministic": runtime.deterministic,
        "found": [asdict(each) for each in found], "failed": failed}))
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
