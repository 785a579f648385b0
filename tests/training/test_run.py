"""Training with the real trainer on tiny models: what is selected, what is trained, what is saved."""

import pytest

pytest.importorskip("trl")
pytest.importorskip("peft")

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from datasets import Dataset
from support import tiny
from support.training_runs import arguments, conversations, prepared_base, write_data
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTTrainer

from ctxaware.errors import InputError
from ctxaware.indicator.marking import mark_messages
from ctxaware.indicator.token import indicator_id
from ctxaware.training import trainer as trainer_module
from ctxaware.training.base import prepare_base, vanilla_base
from ctxaware.training.callback import DataSelectionCallback, data_selection
from ctxaware.training.encoding import TurnTable, encode_dataset, make_encoder
from ctxaware.training.run import claimed_run, configuration, load_conversations, train_and_save
from ctxaware.training.trainer import build_trainer
from ctxaware.training.turn_scores import find_scores

N_TURNS = sum(len(c["messages"]) // 2 for c in conversations())
ROLES = {"user": "human", "assistant": "gpt"}
FIXED = (np.arange(N_TURNS) % 3 == 1).astype(float)  # above and below any threshold


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return prepared_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data") / "chats.jsonl")


def run(base, data, out, *more, scores=None):
    """Trained weights by name and the trainer, by the steps of the recipes."""
    args = arguments(base, data, out, *more)
    with claimed_run(args) as to_do:
        assert to_do
        rows = load_conversations(args)
        name, tokenizer = vanilla_base(args)
        encode = make_encoder(args, tokenizer)
        selection = None if scores is None else DataSelectionCallback(rows, encode, 0.6, scores)
        beforehand = selection.table if selection and args.training.packing else None
        trainer = build_trainer(args, name, tokenizer, encode_dataset(rows, encode, beforehand))
        if selection:
            selection.attach(trainer)
        train_and_save(trainer, args)
    # of a 4-bit model on the CPU, taking the state after a forward pass in evaluation mode changes the weights
    # (bitsandbytes packs them for that pass and does not unpack them exactly)
    return None if args.model.load_in_4bit else weights(trainer.model), trainer


def weights(model):
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def vanilla(base, data, tmp_path_factory):
    return run(base, data, tmp_path_factory.mktemp("runs") / "vanilla")


@pytest.fixture(scope="module")
def marked(base, data, tmp_path_factory):
    """Weights after plain TRL on a data set marked beforehand: nothing of ours but the marks."""
    out = tmp_path_factory.mktemp("runs") / "marked"
    args = arguments(base, data, out)
    table = TurnTable(Dataset.from_list(conversations()))
    table.selected.copy_(torch.from_numpy(FIXED > 0.6))
    rows = [{"messages": mark_messages(c["messages"], table.of(i))} for i, c in enumerate(conversations())]
    tokenizer = AutoTokenizer.from_pretrained(base)
    trainer = SFTTrainer(
        model=str(base), args=args.training, train_dataset=Dataset.from_list(rows), processing_class=tokenizer
    )
    trainer.train()
    return weights(trainer.model)


def test_training_moves_the_weights(base, vanilla):
    before = AutoModelForCausalLM.from_pretrained(base).state_dict()
    assert all(not torch.equal(vanilla[0][name], before[name]) for name in before if "norm" not in name)


def test_nothing_selected_is_vanilla_training_bit_for_bit(base, data, vanilla, tmp_path):
    trained, _ = run(base, data, tmp_path / "run", scores=np.zeros(N_TURNS))
    assert same(trained, vanilla[0])


@pytest.mark.parametrize(
    "workers", [(), ("--dataloader_num_workers", "2", "--dataloader_persistent_workers", "true")], ids=["none", "two"]
)
def test_a_fixed_selection_is_training_on_marked_data_bit_for_bit(base, data, marked, vanilla, tmp_path, workers):
    trained, _ = run(base, data, tmp_path / "run", *workers, scores=FIXED)
    assert same(trained, marked)
    assert not same(trained, vanilla[0])


def test_with_packing_the_selection_is_applied_beforehand(base, data, tmp_path):
    packed = ("--packing", "true", "--max_length", "128")
    plain, _ = run(base, data, tmp_path / "plain", *packed)
    none, _ = run(base, data, tmp_path / "none", *packed, scores=np.zeros(N_TURNS))
    some, trainer = run(base, data, tmp_path / "some", *packed, scores=FIXED)
    assert same(none, plain)
    assert not same(some, plain)
    ids = [i for row in trainer.train_dataset["input_ids"] for i in row]
    assert ids.count(indicator_id(trainer.processing_class)) == int(FIXED.sum())
    assert (tmp_path / "some" / "selection" / "static.parquet").is_file()


def test_the_selection_is_logged_and_written(base, data, tmp_path):
    scores = np.where(np.arange(N_TURNS) == 3, np.nan, np.linspace(0, 1, N_TURNS))
    _, trainer = run(base, data, tmp_path / "run", scores=scores)
    logged = next(entry for entry in trainer.state.log_history if "selection/ratio" in entry)
    assert logged["selection/ratio"] == pytest.approx(float((scores > 0.6).mean()))
    assert logged["selection/without_score"] == 1
    assert logged["selection/score_q0.5"] == pytest.approx(float(np.nanmedian(scores)))
    import pyarrow.parquet as pq

    written = pq.read_table(tmp_path / "run" / "selection" / "static.parquet").to_pylist()
    assert [row["selected"] for row in written] == [bool(s > 0.6) for s in scores]
    assert written[3]["score"] is None
    assert (written[0]["conversation_id"], written[2]["conversation_id"], written[2]["turn"]) == ("c0", "c1", 1)


def test_loss_of_responses_alone_trains_on_fewer_labels(base, data, vanilla, tmp_path):
    trained, trainer = run(base, data, tmp_path / "run", "--assistant_only_loss", "true", scores=FIXED)
    assert not same(trained, vanilla[0])
    batch = next(iter(trainer.get_train_dataloader()))
    kept = trainer.processing_class.decode(batch["labels"][0][batch["labels"][0] != -100])
    assert "<|user|>" not in kept
    assert kept.endswith("</s>")


def of_the_card(out):
    """The arguments with which the model's card says that lm_eval loads it."""
    (words,) = re.findall(r"lm_eval --model hf --model_args (\S+) --tasks", (out / "README.md").read_text())
    return dict(word.split("=") for word in words.split(","))


def test_the_card_of_a_vanilla_adapter_evaluates_it_with_the_template_of_training(data, tmp_path):
    from lm_eval.models.huggingface import HFLM

    raw = tiny.save_model(tmp_path / "raw", tiny.byte_level_tokenizer(), tie_word_embeddings=True)
    out = tmp_path / "run"
    run(raw, data, out, "--use_peft", "true", "--lora_target_modules", "q_proj", "v_proj")
    loaded = HFLM(**of_the_card(out), device="cpu", dtype="float32")
    assert "<|user|>" in loaded.tokenizer.chat_template
    assert "<|user|>" not in AutoTokenizer.from_pretrained(raw).chat_template
    assert type(loaded.model).__name__ == "PeftModelForCausalLM"


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_the_indicators_row_is_trained_and_what_is_saved_loads_equal(data, tmp_path, capsys, method, tied):
    if method == "qlora":
        pytest.importorskip("bitsandbytes")
    raw = tiny.save_model(
        tmp_path / "raw",
        tiny.byte_level_tokenizer(),
        tie_word_embeddings=tied,
        hidden_size=64,
        intermediate_size=128,
    )
    base = prepare_base(str(raw), tmp_path / "base", untied=method != "full")
    more = {
        "full": (),
        "lora": ("--use_peft", "true", "--lora_target_modules", "q_proj", "v_proj"),
        "qlora": ("--use_peft", "true", "--lora_target_modules", "q_proj", "v_proj", "--load_in_4bit", "true"),
    }[method]
    out = tmp_path / "run"
    merge = ("--merge", "true") if more else ()
    _, trainer = run(base, data, out, *more, *merge, scores=FIXED)
    tokenizer = AutoTokenizer.from_pretrained(base if more else out)
    token_id = indicator_id(tokenizer)
    ids = torch.tensor([[5, 6, 7, token_id, 8, 9]])
    with torch.no_grad():
        logits = trainer.model.eval()(ids).logits
    before = AutoModelForCausalLM.from_pretrained(base).get_input_embeddings().weight
    embedding = trainer.model.get_input_embeddings()
    other = trainer.train_dataset[0]["input_ids"][3]
    rows = embedding(torch.tensor([token_id, other]))
    assert not torch.equal(rows[0], before[token_id]), "the indicator's row stayed as it was"
    assert torch.equal(rows[1], before[other]) == bool(more), "an adapter moves this row alone"
    head = AutoModelForCausalLM.from_pretrained(base).get_output_embeddings().weight
    trained_head = trainer.model.get_output_embeddings().weight
    assert not torch.equal(trained_head[token_id], head[token_id]), "the indicator can't be predicted"
    assert torch.equal(trained_head[other], head[other]) == bool(more), "an adapter moves this row alone"
    if method != "qlora":
        from lm_eval.models.huggingface import HFLM

        loaded = HFLM(**of_the_card(out), device="cpu", dtype="float32")
        assert torch.equal(loaded._model_call(ids), logits)
        assert loaded.tokenizer.chat_template == tokenizer.chat_template == trainer.processing_class.chat_template
        assert indicator_id(loaded.tokenizer) == token_id
    if method == "qlora":
        from peft import PeftModel

        quantization = trainer.model.config.quantization_config
        quantized = AutoModelForCausalLM.from_pretrained(base, quantization_config=quantization, dtype=torch.float32)
        with torch.no_grad():
            assert torch.equal(PeftModel.from_pretrained(quantized, out).eval()(ids).logits, logits)
    if more:
        merged = AutoModelForCausalLM.from_pretrained(out / "merged")(ids).logits
        moved = float((merged - logits).abs().max())
        assert moved < 1e-5 if method == "lora" else 1e-4 < moved < 1
        assert "its logits moved by at most" in capsys.readouterr().out
        assert indicator_id(AutoTokenizer.from_pretrained(out / "merged")) == token_id
        adapter = (out / "adapter_model.safetensors").stat().st_size
        assert adapter < (base / "model.safetensors").stat().st_size / 4


def test_an_adapter_on_a_tied_base_with_the_token_is_refused(data, tmp_path):
    base = prepared_base(tmp_path / "base", tie_word_embeddings=True)
    with pytest.raises(InputError, match="has tied embeddings, so the harness could not load an adapter"):
        run(base, data, tmp_path / "run", "--use_peft", "true")


def test_what_needs_whole_weights_is_refused_where_they_are_sharded(base, data, tmp_path, monkeypatch):
    from accelerate import Accelerator
    from accelerate.utils import DistributedType

    more = ("--use_peft", "true", "--lora_target_modules", "q_proj", "v_proj")
    args = arguments(base, data, tmp_path / "run", *more, "--rescore_each_epoch", "true", "--score_layer", "1")
    rows = load_conversations(args)
    name, tokenizer = vanilla_base(args)
    encode = make_encoder(args, tokenizer)
    dataset = encode_dataset(rows, encode)
    trainer = build_trainer(args, name, tokenizer, dataset)
    monkeypatch.setattr(Accelerator, "distributed_type", property(lambda _: DistributedType.FSDP))
    with pytest.raises(InputError, match="not possible where FSDP or DeepSpeed shard"):
        data_selection(args, rows, encode).attach(trainer)
    merging = arguments(base, data, tmp_path / "merging", *more, "--merge", "true")
    monkeypatch.setattr(trainer_module, "ProvenanceTrainer", lambda **_: trainer)  # built before the patch
    with pytest.raises(InputError, match="leave out merge, and merge the saved adapter with PEFT"):
        build_trainer(merging, name, tokenizer, dataset)


def test_a_push_takes_the_models_files_alone_and_is_made_again_on_demand(base, data, tmp_path, monkeypatch, capsys):
    import huggingface_hub
    import transformers.trainer
    from huggingface_hub.utils import filter_repo_objects

    pushed, refuse = [], True

    def upload_folder(self, *, folder_path, allow_patterns, **_):
        if refuse:
            raise ConnectionError("the hub is away")
        files = [str(p.relative_to(folder_path)) for p in Path(folder_path).rglob("*") if p.is_file()]
        pushed.append((self.token, set(filter_repo_objects(files, allow_patterns=allow_patterns))))

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", lambda *_, **__: SimpleNamespace(repo_id="me/run"))
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", upload_folder)
    monkeypatch.setattr(transformers.trainer, "hf_api", lambda: pytest.fail("TRL's trainer pushed"))
    monkeypatch.setattr(transformers.Trainer, "init_hf_repo", lambda *_, **__: None)  # asks for a login at the start
    out = tmp_path / "run"
    more = ("--push_to_hub", "true", "--hub_token", "secret", "--save_strategy", "steps", "--save_steps", "1")
    with pytest.raises(InputError, match=r"is trained and saved, but was not pushed \(the hub is away\); the same"):
        run(base, data, out, *more, scores=FIXED)
    (out / "notes.txt").touch()
    (out / "leak.safetensors").symlink_to(data)
    refuse = False
    with claimed_run(arguments(base, data, out, *more)) as to_do:
        assert not to_do
    ((token, files),) = pushed
    assert token == "secret"
    assert files >= {"README.md", "config.json", "model.safetensors", "tokenizer.json", "selection/static.parquet"}
    assert not {name for name in files if name.split("/")[0] not in ("selection",) and "/" in name}
    assert not files & {"run.json", "training_args.bin", "lock", "notes.txt", "leak.safetensors"}
    assert "pushed to me/run" in capsys.readouterr().out


def test_a_revision_of_the_base_is_remembered_by_its_adapter(base, data, tmp_path, monkeypatch):
    cached, commit = tmp_path / "hub" / "models--me--tiny", "0123456789abcdef0123456789abcdef01234567"
    shutil.copytree(base, cached / "snapshots" / commit)  # as the hub's client keeps a model: no network is needed
    (cached / "refs").mkdir()
    (cached / "refs" / "step-7").write_text(commit)
    (cached / "refs" / "main").write_text(commit[::-1])  # has no weights; TRL reads the architecture there
    (cached / "snapshots" / commit[::-1]).mkdir()
    shutil.copy(base / "config.json", cached / "snapshots" / commit[::-1])
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    out = tmp_path / "run"
    adapter = ("--use_peft", "true", "--lora_target_modules", "q_proj", "v_proj", "--merge", "true")
    run("me/tiny", data, out, *adapter, "--model_revision", "step-7")
    assert json.loads((out / "adapter_config.json").read_text())["revision"] == "step-7"
    assert of_the_card(out) == {"pretrained": "me/tiny", "peft": str(out), "tokenizer": str(out), "revision": "step-7"}
    assert (out / "merged" / "model.safetensors").is_file()


def test_what_the_trainer_refuses_is_one_line(base, data, tmp_path):
    with pytest.raises(InputError, match=r"the trainer refuses these arguments: .*no_such_proj"):
        run(base, data, tmp_path / "run", "--use_peft", "true", "--lora_target_modules", "no_such_proj")


def test_a_folder_of_a_release_is_found_as_prepare_finds_it(base, tmp_path):
    folder = tmp_path / "release"
    folder.mkdir()
    records = [
        {"id": c["id"], "conversations": [{"from": ROLES[m["role"]], "value": m["content"]} for m in c["messages"]]}
        for c in conversations(4)
    ]
    (folder / "ShareGPT_V3_unfiltered_cleaned_split.json").write_text(json.dumps(records))
    (folder / "another.json").write_text("[]")
    args = arguments(base, folder, tmp_path / "run", "--dataset", "sharegpt")
    assert len(load_conversations(args)) == 4


@pytest.mark.parametrize("given", ["scores", "seed_model"])
def test_the_layer_of_the_scores_is_the_layer_of_later_epochs(base, data, tmp_path, given):
    from ctxaware.scores.run import ScoreRun, score_file

    scores = tmp_path / "scores.parquet"
    more = ["--seed_model", str(base), "--score_layer", "0"]
    if given == "scores":
        clean = arguments(base, data, tmp_path / "clean")
        load_conversations(clean)
        score_file(ScoreRun(tmp_path / "clean" / "_data", str(base), scores, "0", 64, 2000, device="cpu"))
        more = ["--scores", str(scores)]
    args = arguments(base, data, tmp_path / "run", *more, "--rescore_each_epoch", "true", "--threshold", "0.28")
    rows = load_conversations(args)
    callback = data_selection(args, rows, make_encoder(args, vanilla_base(args)[1]))
    assert callback.rescore_layer == 0
    assert np.isfinite(callback.scores).any()


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (("--attn_implementation", "flash_attention_2"), "FlashAttention"),
        (("--optim", "galore_adamw", "--optim_target_modules", "q_proj"), "galore"),
    ],
)
def test_a_package_that_is_not_there_is_one_line(base, data, tmp_path, more, told):
    with pytest.raises(InputError, match=f"the trainer refuses these arguments: .*{told}"):
        run(base, data, tmp_path / "run", *more)


def test_a_seed_model_with_a_shorter_window_scores_what_fits_it(data, tmp_path):
    base = prepared_base(tmp_path / "base", max_position_embeddings=32)
    more = ("--seed_model", str(base), "--score_layer", "1")
    args = arguments(base, data, tmp_path / "run", *more)
    assert args.training.max_length == 64
    load_conversations(args)
    scores, _ = find_scores(args)
    assert 0 < np.isnan(scores).sum() < len(scores)
    args.indicator.score_layer = 9
    with pytest.raises(InputError, match="got 9; pass score_layer 1"):
        find_scores(args)


def test_bad_data_ends_the_run_before_the_model_is_loaded(base, tmp_path, monkeypatch):
    data = tmp_path / "bad.jsonl"
    kinds = [[], None, [{"role": "user", "content": None}], [{"role": "tool", "content": "x"}]]
    data.write_text("".join(json.dumps({"id": str(i), "messages": m}) + "\n" for i, m in enumerate(kinds)))
    args = arguments(base, data, tmp_path / "run")
    with pytest.raises(InputError, match="no conversation is left of the 4 records"):
        load_conversations(args)


def test_odd_conversations_are_repaired_and_counted(base, tmp_path, capsys):
    good = conversations(4)
    odd = [
        {"id": "trailing", "messages": [*good[0]["messages"], {"role": "user", "content": "and"}]},
        {"id": "null", "messages": [*good[1]["messages"], {"role": "user", "content": None}]},
        {"id": "role", "messages": [{"role": "tool", "content": "x"}, *good[2]["messages"]]},
        {"id": "empty", "messages": []},
    ]
    data = tmp_path / "odd.jsonl"
    data.write_text("".join(json.dumps(c) + "\n" for c in odd))
    args = arguments(base, data, tmp_path / "run")
    rows = load_conversations(args)
    assert [row["messages"] for row in rows] == [c["messages"] for c in good[:3]]
    told = capsys.readouterr().out
    for count in ("1 unanswered instructions", "1 null messages", "1 unknown roles", "1 empty conversations"):
        assert count in told


@pytest.mark.parametrize(
    ("name", "content"),
    [("statistics.json", b""), ("statistics.json", b"[]"), ("conversations.parquet", b"PAR1"), ("both", b"")],
)
def test_damaged_conversations_of_an_interrupted_run_are_prepared_again(base, data, tmp_path, name, content):
    args = arguments(base, data, tmp_path / "run")
    folder = tmp_path / "run" / "_data"
    whole = list(load_conversations(args))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for path in folder.iterdir():
        if name in (path.name, "both"):
            path.write_bytes(content)
    assert list(load_conversations(args)) == whole
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_scores_of_other_data_and_of_another_number_are_refused(base, data, tmp_path):
    args = arguments(base, data, tmp_path / "run")
    rows = load_conversations(args)
    encode = make_encoder(args, vanilla_base(args)[1])
    with pytest.raises(InputError, match=rf"expected {N_TURNS} scores, one a turn, got 2"):
        DataSelectionCallback(rows, encode, 0.6, np.zeros(2))
    with pytest.raises(InputError, match="data selection needs scores"):
        DataSelectionCallback(rows, encode, 0.6, None)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_indicator_recipe_s_last_step_writes_the_automatic_indicator(tmp_path, capsys, method):
    from ctxaware import load_auto_indicator
    from ctxaware.harness.model import ContextLM

    base = prepared_base(tmp_path / "base")
    data = write_data(tmp_path / "chats.jsonl", 40)
    n_turns = sum(len(c["messages"]) // 2 for c in conversations(40))
    scores = (np.arange(n_turns) % 3 == 1).astype(float)
    more = ("--use_peft", "true", "--lora_target_modules", "q_proj", "v_proj") if method == "lora" else ()
    args, out = arguments(base, data, tmp_path / "run", *more, "--scores", "of the test"), tmp_path / "run"
    without = weights_of_a_run(args, tmp_path / "without", scores, with_indicator=False)
    with_it = weights_of_a_run(args, out, scores, with_indicator=True)
    assert same(without, with_it)  # what is fitted afterwards changes nothing that was trained
    assert f"{out / 'auto_indicator.json'}: slot, AUROC 0." in capsys.readouterr().out
    loaded = load_auto_indicator(str(out))
    assert loaded.method.name == "slot"
    assert loaded.beta == 0.6
    assert loaded.fitted["seen_in_training"] is True
    names = {"peft": str(out), "pretrained": str(base), "tokenizer": str(out)} if more else {"pretrained": str(out)}
    assert ContextLM(**names, device="cpu", indicator="auto")._auto.model == loaded.model


def weights_of_a_run(args, out, scores, with_indicator):
    """Trained by the indicator recipe's steps, with its last one or without."""
    args.training.output_dir = str(out)
    with claimed_run(args) as to_do:
        assert to_do
        rows = load_conversations(args)
        name, tokenizer = vanilla_base(args)
        encode = make_encoder(args, tokenizer)
        selection = DataSelectionCallback(rows, encode, 0.6, scores)
        trainer = build_trainer(args, name, tokenizer, encode_dataset(rows, encode))
        selection.attach(trainer)
        train_and_save(trainer, args, selection if with_indicator else None)
    return weights(trainer.model)


def test_too_few_turns_for_an_automatic_indicator_are_told_and_the_run_is_finished(base, data, tmp_path, capsys):
    args = arguments(base, data, tmp_path / "run", "--scores", "of the test")
    with claimed_run(args):
        rows = load_conversations(args)
        name, tokenizer = vanilla_base(args)
        encode = make_encoder(args, tokenizer)
        selection = DataSelectionCallback(rows, encode, 0.6, FIXED)
        trainer = build_trainer(args, name, tokenizer, encode_dataset(rows, encode))
        selection.attach(trainer)
        train_and_save(trainer, args, selection)
    said = capsys.readouterr().out
    assert re.search(r"^no auto_indicator.json: \d+ of \d+ turns have a score above beta 0.6, in too few", said, re.M)
    assert not (tmp_path / "run" / "auto_indicator.json").exists()
    assert json.loads((tmp_path / "run" / "run.json").read_text())["finished"]


def test_the_launchers_mixed_precision_is_part_of_the_run(base, data, tmp_path, monkeypatch):
    of_recipe = configuration(arguments(base, data, tmp_path / "run"))["mixed_precision"]
    assert of_recipe == "no"
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")  # what `mixed_precision: bf16` of a launch config becomes
    args = arguments(base, data, tmp_path / "run")
    assert configuration(args)["mixed_precision"] == "bf16"
    assert args.training.mixed_precision == "bf16", "what the trainer takes"


def test_rows_of_the_embedding_and_of_the_output_matrix_are_found_by_name(monkeypatch):
    """An output matrix with a bias is left out: PEFT's layer for single rows would drop the bias."""
    import transformers as tf

    small = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
    }
    for config, names in [
        (tf.LlamaConfig(**small), ["embed_tokens", "lm_head"]),
        (tf.GPTNeoXConfig(**small), ["embed_in", "lm_head"]),
        (tf.PhiConfig(**small), ["embed_tokens"]),
    ]:
        monkeypatch.setattr(trainer_module, "load_config", lambda *_, config=config: config)
        assert trainer_module._embedding_names("a base", None) == names
