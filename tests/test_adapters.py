"""Test the aggregation of saved PEFT adapters: PEFT loads the result that each method promises, and other inputs are refused."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

import fedrift
from fedrift.adapters import FACTORIES, make_round, read_adapter
from fedrift.algorithms import FedAvg
from fedrift.algorithms.aggregators import FedEx, FLoRA
from fedrift.cli.app import app
from fedrift.probes.lora import aggregation_error

WEIGHTS = [4.0, 1.0, 2.0]
EXACT_METHODS = ("fedex", "flora")


def base(folder):
    """Return a tiny random model that is loaded from a folder."""
    if not folder.exists():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            shape = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
            LlamaForCausalLM(LlamaConfig(vocab_size=50, max_position_embeddings=32, **shape)).save_pretrained(folder)
    return LlamaForCausalLM.from_pretrained(folder)


def save_client(root, number, *, frozen_down=False, **lora):
    """Save one client's adapter with random factors in its own folder."""
    options = {"r": 2, "lora_alpha": 6, "target_modules": ["q_proj", "down_proj"], "init_lora_weights": False, **lora}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(100 + number)
        model = get_peft_model(base(root / "base"), LoraConfig(task_type="CAUSAL_LM", **options))
        if frozen_down:
            torch.manual_seed(7)
            for name, leaf in model.named_parameters():
                if "lora_A" in name:
                    torch.nn.init.normal_(leaf)
    model.save_pretrained(root / f"client{number}")
    return root / f"client{number}"


def edit(folder, **keys):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))
    return folder


def changes(root, folder):
    """Return what PEFT adds to each weight after it has loaded a folder: ``{module: [O, I]}``."""
    model = PeftModel.from_pretrained(base(root / "base"), folder)
    layers = {name: layer for name, layer in model.named_modules() if hasattr(layer, "get_delta_weight") and hasattr(layer, "lora_A")}
    return {name: layer.get_delta_weight("default").double() for name, layer in layers.items()}


def distance(found, expected):
    return (
        (
            sum((found[name] - leaf).square().sum() for name, leaf in expected.items())
            / sum(leaf.square().sum() for leaf in expected.values())
        )
        .sqrt()
        .item()
    )


def mean_of(all_changes, weights=WEIGHTS):
    total = sum(weights)
    return {name: sum(w / total * each[name] for w, each in zip(weights, all_changes, strict=True)) for name in all_changes[0]}


@pytest.fixture(scope="module")
def clients(tmp_path_factory):
    root = tmp_path_factory.mktemp("clients")
    return root, [save_client(root, number) for number in range(3)]


@pytest.mark.parametrize("rslora", [False, True], ids=["lora", "rslora"])
@pytest.mark.parametrize("method", ["fedavg", "flexlora", "fedex", "flora"])
def test_peft_loads_the_result_of_each_method(method, rslora, tmp_path):
    folders = [save_client(tmp_path, number, use_rslora=rslora) for number in range(3)]
    result = fedrift.aggregate_adapters(folders, method, WEIGHTS, tmp_path / "out")
    expected, found = mean_of([changes(tmp_path, folder) for folder in folders]), changes(tmp_path, tmp_path / "out")
    assert distance(found, expected) == pytest.approx(result.remaining_error, abs=2e-6)
    assert result.is_exact == (method in EXACT_METHODS) and result.rank == (6 if method in EXACT_METHODS else 2)
    assert result.remaining_error == pytest.approx(result.error) if method == "fedavg" else result.remaining_error < result.error
    assert result.weights == pytest.approx([4 / 7, 1 / 7, 2 / 7]) and result.folder == tmp_path / "out"
    assert load_file(tmp_path / "out" / "adapter_model.safetensors").keys() == result.state_dict.keys()


def test_ffa_is_exact_if_all_clients_have_equal_a(tmp_path):
    folders = [save_client(tmp_path, number, frozen_down=True) for number in range(3)]
    result = fedrift.aggregate_adapters(folders, "ffa", WEIGHTS, tmp_path / "out")
    assert result.is_exact and result.error < 1e-6 and result.rank == 2
    assert distance(changes(tmp_path, tmp_path / "out"), mean_of([changes(tmp_path, folder) for folder in folders])) < 1e-6


def test_the_error_equals_its_definition_per_module_and_in_total(clients):
    _, folders = clients
    result = fedrift.aggregate_adapters(folders, weights=WEIGHTS)
    share = torch.tensor(WEIGHTS, dtype=torch.float64) / sum(WEIGHTS)
    files = [load_file(folder / "adapter_model.safetensors") for folder in folders]
    lost, whole = {}, {}
    for module in result.error_by_module:
        ups, downs = (torch.stack([file[f"{module}.lora_{kind}.weight"].double() for file in files]) for kind in "BA")
        exact = torch.einsum("c,cor,cri->oi", share, ups, downs)
        apart = exact - torch.einsum("c,cor->or", share, ups) @ torch.einsum("c,cri->ri", share, downs)
        lost[module], whole[module] = apart.square().sum(), exact.square().sum()
        assert result.error_by_module[module] == pytest.approx((lost[module] / whole[module]).sqrt().item(), abs=1e-9)
    assert len(lost) == 4 and result.error == pytest.approx((sum(lost.values()) / sum(whole.values())).sqrt().item(), abs=1e-9)
    assert (
        result.error
        == aggregation_error(make_round([read_adapter(folder) for folder in folders], result.weights, "fedavg"))["adapters.error"]
    )


@pytest.mark.parametrize(("method", "aggregator"), [("fedex", FedEx()), ("flora", FLoRA())], ids=["fedex", "flora"])
def test_the_factors_equal_those_of_the_aggregators(method, aggregator, clients):
    result = make_round([read_adapter(folder) for folder in clients[1]], WEIGHTS, method)
    factors, server = FACTORIES[method](result), result.before.server
    server = type(server)(server.params, server.broadcast, server.opt_state, aggregator.init_merged_base(server.params))
    after = FedAvg(aggregator=aggregator).server_update(server, result.update)
    for name in [name.removesuffix(".A") for name in factors if name.endswith(".A")]:
        expected = after.merged_base[f"{name}.base"][0] + after.params[f"{name}.B"][0] @ after.params[f"{name}.A"][0]
        assert torch.allclose(factors[f"{name}.B"].float() @ factors[f"{name}.A"].float(), expected, atol=1e-6)
        if method == "fedex":  # its first ranks are the adapter with which FedEx continues
            assert torch.equal(factors[f"{name}.B"][:, :2].float(), after.params[f"{name}.B"][0])


@pytest.mark.parametrize("method", ["fedavg", "flexlora", "fedex", "flora"])
def test_the_aggregate_of_one_client_is_its_adapter(method, clients, tmp_path):
    root, folders = clients
    result = fedrift.aggregate_adapters(folders[:1], method, output=tmp_path / "out")
    assert result.error == 0 and result.rank == 2 and distance(changes(root, tmp_path / "out"), changes(root, folders[0])) < 1e-6


def test_the_data_type_of_the_files_is_kept(clients, tmp_path):
    folders = []
    for number, folder in enumerate(clients[1]):
        half = {name: leaf.bfloat16() for name, leaf in load_file(folder / "adapter_model.safetensors").items()}
        (tmp_path / str(number)).mkdir()
        save_file(half, tmp_path / str(number) / "adapter_model.safetensors")
        (tmp_path / str(number) / "adapter_config.json").write_text((folder / "adapter_config.json").read_text())
        folders.append(tmp_path / str(number))
    result = fedrift.aggregate_adapters(folders, "fedex", WEIGHTS)
    assert {leaf.dtype for leaf in result.state_dict.values()} == {torch.bfloat16}
    exact, written, total = 0.0, 0.0, sum(WEIGHTS)
    files = [load_file(folder / "adapter_model.safetensors") for folder in folders]
    for module in result.error_by_module:
        names, every = [f"{module}.lora_{kind}.weight" for kind in "BA"], (*files, result.state_dict)
        *products, own = (file[names[0]].double() @ file[names[1]].double() for file in every)
        mean = sum(weight / total * product for weight, product in zip(WEIGHTS, products, strict=True))
        exact, written = exact + mean.square().sum().item(), written + (mean - own).square().sum().item()
    assert result.remaining_error == pytest.approx((written / exact) ** 0.5) and result.remaining_error > 1e-4 and not result.is_exact


@pytest.mark.parametrize("method", EXACT_METHODS)
def test_clients_of_weight_0_do_not_change_what_peft_loads(method, clients, tmp_path):
    root, folders = clients
    result = fedrift.aggregate_adapters(folders, method, [1, 0, 1], tmp_path / "out")
    assert result.rank == (4 if method == "flora" else 6) and result.is_exact
    assert distance(changes(root, tmp_path / "out"), mean_of([changes(root, folder) for folder in folders], [1, 0, 1])) < 2e-6


def test_flexlora_aggregates_modules_with_fewer_outputs_than_ranks(tmp_path):
    folders = []
    for number in range(2):
        folder = save_client(tmp_path, number)
        generator = torch.Generator().manual_seed(number)
        factors = {"m.lora_A.weight": torch.randn(4, 6, generator=generator), "m.lora_B.weight": torch.randn(2, 4, generator=generator)}
        save_file(factors, folder / "adapter_model.safetensors")
        folders.append(edit(folder, r=4))
    result = fedrift.aggregate_adapters(folders, "flexlora")
    assert result.is_exact and [list(leaf.shape) for leaf in result.state_dict.values()] == [[4, 6], [2, 4]]
    assert bool(result.state_dict["m.lora_A.weight"].any(1).all())  # a rank of zeros in both factors could not learn


@pytest.mark.parametrize("init", ["pissa", "olora", "OLoRA"])
def test_methods_with_another_rank_refuse_inits_that_change_the_base(init, tmp_path):
    folders = [edit(save_client(tmp_path, number), init_lora_weights=init) for number in range(2)]
    for method in EXACT_METHODS:
        with pytest.raises(fedrift.UserError, match=f"another rank, and with init_lora_weights='{init.lower()}' PEFT changes the base"):
            fedrift.aggregate_adapters(folders, method)
    assert fedrift.aggregate_adapters(folders, "flexlora").rank == 2
    edit(folders[1], init_lora_weights=True)
    with pytest.raises(fedrift.UserError, match="the adapters differ in init_lora_weights"):
        fedrift.aggregate_adapters(folders)


@pytest.mark.parametrize("init", ["pissa_niter_4", "PiSSA_niter_16"])
@pytest.mark.parametrize("method", ["fedavg", "flexlora", "flora"])
def test_adapters_of_a_random_base_are_refused(method, init, tmp_path):
    folders = [edit(save_client(tmp_path, number), init_lora_weights=init) for number in range(2)]
    with pytest.raises(fedrift.UserError, match="it draws at random in each process: the clients' adapters are of different base weights"):
        fedrift.aggregate_adapters(folders, method)


def cast_factors(folder, dtype) -> None:
    """Store the factors of an adapter in another type."""
    path = folder / "adapter_model.safetensors"
    save_file({name: leaf.to(dtype) for name, leaf in load_file(path).items()}, path)


def test_weights_count_as_shares_whatever_their_size(tmp_path):
    folders = [save_client(tmp_path, number) for number in range(2)]
    for weights in ([1.0, 3.0], [1e308 / 3, 1e308], [1e-320, 3e-320], [10**30, 3 * 10**30]):
        assert fedrift.aggregate_adapters(folders, weights=weights).weights == pytest.approx((0.25, 0.75), rel=1e-3)


REFUSALS = {
    "another base": (lambda a, b: edit(b, base_model_name_or_path="other"), {}, "differ in base_model_name_or_path: '.* and 'other' in"),
    "another scale": (lambda a, b: edit(b, lora_alpha=12), {}, "differ in lora_alpha: 6 in .* and 12"),
    "dora": (lambda a, b: edit(b, use_dora=True), {}, "use_dora=true, and weight-decomposed adapters"),
    "rank pattern": (lambda a, b: edit(b, rank_pattern={"q_proj": 4}), {}, "rank_pattern=.* and ranks that differ from module"),
    "parameters": (lambda a, b: edit(b, target_parameters=["w"]), {}, "target_parameters=.* and adapters of parameters"),
    "block-diagonal": (lambda a, b: edit(b, use_bdlora={"nblocks": 2}), {}, "use_bdlora=.* and block-diagonal factors"),
    "another kind": (lambda a, b: edit(b, peft_type="IA3"), {}, "is of the type 'IA3', and only LORA adapters"),
    "no config": (lambda a, b: (b / "adapter_config.json").unlink(), {}, "there is no such file; .* must be a folder"),
    "no weights": (lambda a, b: (b / "adapter_model.safetensors").unlink(), {}, "client1 has no adapter_model.safetensors"),
    "not safetensors": (lambda a, b: (b / "adapter_model.safetensors").write_bytes(b"no"), {}, "cannot be read as safetensors"),
    "weights": (lambda a, b: None, {"weights": [1.0]}, "1 weights for 2 adapters"),
    "negative": (lambda a, b: None, {"weights": [1.0, -1.0]}, "must be finite and at least 0"),
    "weights in text": (lambda a, b: None, {"weights": "12"}, "must be finite and at least 0"),
    "endless weight": (lambda a, b: None, {"weights": [10**400, 1]}, "must be finite and at least 0"),
    "another rank than that of the file": (lambda a, b: [edit(each, r=4) for each in (a, b)], {}, r"\[2, \d+\], but r is 4 in"),
    "rank 0": (lambda a, b: [edit(each, r=0) for each in (a, b)], {}, "has r=0, and the rank of a LoRA adapter"),
    "rank in text": (lambda a, b: [edit(each, r="2") for each in (a, b)], {}, "has r='2', and the rank of a LoRA adapter"),
    "no scale": (lambda a, b: [edit(each, lora_alpha=None) for each in (a, b)], {}, "lora_alpha=null, and the scale of a LoRA adapter"),
    "scale 0": (lambda a, b: [edit(each, lora_alpha=0) for each in (a, b)], {}, "lora_alpha=0, and the scale of a LoRA adapter"),
    "infinite scale": (lambda a, b: [edit(each, lora_alpha=math.inf) for each in (a, b)], {}, "lora_alpha=.inf, and the scale"),
    "whole numbers": (lambda a, b: [cast_factors(each, torch.int32) for each in (a, b)], {}, "of int32, and only LoRA factors"),
    "method": (lambda a, b: None, {"method": "fedx"}, "no aggregation method 'fedx': did you mean 'fedex'"),
    "ffa": (lambda a, b: None, {"method": "ffa"}, "averages B under one frozen A, and .* differs between"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_adapters_that_do_not_match_are_refused_in_one_sentence(case, tmp_path):
    spoil, options, message = REFUSALS[case]
    folders = [save_client(tmp_path, number) for number in range(2)]
    spoil(*folders)
    with pytest.raises(fedrift.UserError, match=message) as error:
        fedrift.aggregate_adapters(folders, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("lora", "message"),
    [({"r": 3}, "differ in r: 2"), ({"target_modules": ["q_proj"]}, "differ in target_modules"), ({"bias": "all"}, "trained biases")],
)
def test_other_configurations_are_refused(lora, message, tmp_path):
    folders = [save_client(tmp_path, 0), save_client(tmp_path, 1, **lora)]
    with pytest.raises(fedrift.UserError, match=message):
        fedrift.aggregate_adapters(folders)


def test_non_finite_numbers_and_folders_with_files_are_refused(tmp_path):
    folder = save_client(tmp_path, 0)
    with pytest.raises(fedrift.UserError, match="exists and is not empty"):
        fedrift.aggregate_adapters([folder], output=folder)
    with pytest.raises(fedrift.UserError, match="as a list of at least one"):
        fedrift.aggregate_adapters(str(folder))
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file({name: leaf * float("nan") for name, leaf in tensors.items()}, folder / "adapter_model.safetensors")
    with pytest.raises(fedrift.UserError, match="not finite: leave this client out"):
        fedrift.aggregate_adapters([folder])


def test_the_command_prints_the_errors_and_writes_the_adapter(clients, tmp_path):
    root, folders = clients
    words = ["aggregate-adapters", *map(str, folders), "--weights", "4,1,2", "--method", "fedex"]
    done = CliRunner().invoke(app, [*words, "--output", str(tmp_path / "out")])
    result = fedrift.aggregate_adapters(folders, "fedex", WEIGHTS)
    assert done.exit_code == 0, done.output
    assert f"{100 * result.error:.2f} %" in done.output and "of rank 6, is exact" in done.output
    assert distance(changes(root, tmp_path / "out"), mean_of([changes(root, folder) for folder in folders])) < 2e-6
    told = json.loads(CliRunner().invoke(app, [*words, "--json"]).output)
    assert told["error"] == result.error and told["error_by_module"] == result.error_by_module and told["folder"] is None
    assert CliRunner().invoke(app, [*words[:-4], "--weights", "a,b"]).exit_code == 2
    assert "client0 client1 client2" in CliRunner().invoke(app, ["aggregate-adapters", "--help"]).output


def test_the_command_needs_neither_peft_nor_transformers(clients):
    code = f"import sys, fedrift; fedrift.aggregate_adapters({[str(f) for f in clients[1]]!r}); print('peft' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr
