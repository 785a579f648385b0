import pytest

pytest.importorskip("trl")

from pathlib import Path

import yaml

from ctxaware.errors import InputError
from ctxaware.training.arguments import IndicatorArguments, accumulation, parse_arguments

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture
def parse(tmp_path):
    def parse(*more, own=(), **files):
        configs = []
        for name, text in files.items():
            (tmp_path / f"{name}.yaml").write_text(text)
            configs += ["--config", str(tmp_path / f"{name}.yaml")]
        argv = ["--use_cpu", "true", "--bf16", "false", "--model_name_or_path", "m", "--data", "d", "--output_dir", "o"]
        return parse_arguments(*own, argv=[*configs, *argv, *more])

    return parse


def test_files_fill_and_the_command_line_overrides(parse):
    found = parse("--learning_rate", "3e-5", a="learning_rate: 1e-5\nmax_length: 99", b="effective_batch_size: 16")
    assert found.training.learning_rate == 3e-5
    assert found.training.max_length == 99
    assert found.run.effective_batch_size == 16
    assert (found.training.lr_scheduler_type, found.training.warmup_steps) == ("cosine", 0.1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rat: 1", "unknown key 'learning_rat' in the config; did you mean learning_rate"),
        ("warmup_ratio: 0.1", "unknown key 'warmup_ratio'"),
        ("max_length: 1\nmax_length: 2", "max_length comes twice"),
        ("dtype: float3", "dtype must be one of auto, bfloat16, float16, float32, got 'float3'"),
        ("- 1", "must hold a mapping"),
        ("a: [", "is no YAML"),
    ],
)
def test_what_a_file_must_not_hold(parse, text, message):
    with pytest.raises(InputError, match=message):
        parse(a=text)


def test_a_key_in_two_files_a_missing_file_and_missing_data_are_errors(parse):
    with pytest.raises(InputError, match=r"seed comes twice: in .*a.yaml and in .*b.yaml"):
        parse(a="seed: 1", b="seed: 1")
    with pytest.raises(InputError, match=r"'nowhere.yaml' is no file"):
        parse("--config=nowhere.yaml")
    with pytest.raises(InputError, match="no data given; pass data, or a config"):
        parse_arguments(argv=["--use_cpu", "true", "--bf16", "false", "--model_name_or_path", "m"])
    with pytest.raises(InputError, match="unknown argument --threshold"):
        parse("--threshold", "0.5")  # the other recipe's


def test_merging_needs_an_adapter(parse):
    with pytest.raises(InputError, match="there is no adapter to merge; pass use_peft true, or leave out merge"):
        parse("--merge", "true")


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("chat_template_path", "x.jinja", "pass chat_template"),
        ("eos_token", "<e>", "the tokenizer's own"),
        ("truncation_mode", "keep_end", "kept from their start"),
        ("resume_from_checkpoint", "x", "takes up its run"),
        ("save_only_model", "true", "could not be taken up"),
        ("trust_remote_code", "true", "models that transformers knows"),
        ("eval_strategy", "steps", "evaluate what they save"),
        ("completion_only_loss", "true", "pass assistant_only_loss true"),
        ("dataset_text_field", "prompt", "read as messages"),
    ],
)
def test_arguments_that_would_do_nothing_or_harm_are_refused(parse, name, value, told):
    more = ("--eval_steps", "1") if name == "eval_strategy" else ()
    with pytest.raises(InputError, match=f"{name} can't be set here, got .*{told}"):
        parse(f"--{name}", value, *more)


def test_sizes_and_methods_that_make_no_sense_are_refused(parse):
    with pytest.raises(InputError, match="per_device_train_batch_size must be at least 1, got 0"):
        parse("--per_device_train_batch_size", "0")
    with pytest.raises(InputError, match="pass use_peft true for an adapter"):
        parse("--load_in_4bit", "true")
    with pytest.raises(InputError, match="lora_r is of an adapter, and all weights would be trained; pass use_peft tr"):
        parse("--lora_r", "8")


def test_a_slash_after_the_output_folder_changes_nothing(parse, tmp_path):
    assert parse("--output_dir", f"{tmp_path}/run/").training.output_dir == f"{tmp_path}/run"


def test_accumulation_follows_from_the_effective_batch(parse):
    found = parse("--effective_batch_size", "24", "--per_device_train_batch_size", "2")
    assert found.training.gradient_accumulation_steps == 12
    found.training.gradient_accumulation_steps = 1
    assert accumulation(found, n_processes=3) == 4
    with pytest.raises(InputError, match=r"must be a multiple of 10 \(5 processes x .* 2\), got 24"):
        accumulation(found, n_processes=5)
    with pytest.raises(InputError, match="leave out gradient_accumulation_steps"):
        parse("--gradient_accumulation_steps", "4")


def test_selection_needs_one_source_of_scores(parse):
    with pytest.raises(InputError, match="which instructions get"):
        parse(own=[IndicatorArguments])
    with pytest.raises(InputError, match="either scores or seed_model"):
        parse("--scores", "s", "--seed_model", "m", own=[IndicatorArguments])
    assert parse("--scores", "s", own=[IndicatorArguments]).indicator.threshold == 0.6


@pytest.mark.parametrize("data", sorted(p.name for p in (RECIPES / "configs" / "data").iterdir()))
@pytest.mark.parametrize("model", sorted(p.name for p in (RECIPES / "configs" / "models").iterdir()))
def test_every_model_file_goes_with_every_data_file(tmp_path, model, data):
    configs = [f"--config={RECIPES / 'configs' / kind / name}" for kind, name in (("models", model), ("data", data))]
    more = ["--use_cpu", "true", "--bf16", "false", "--model_name_or_path", "m", "--output_dir", str(tmp_path)]
    found = parse_arguments(argv=[*configs, *more])
    assert found.run.dataset == data.removesuffix(".yaml")
    assert found.training.num_train_epochs == (2 if data == "wizardlm.yaml" else 1)
    expected = {
        "tinyllama.yaml": (128, 2048, 2e-5),
        "qlora.yaml": (64, 4096, 2e-4),
        "smollm2-demo.yaml": (2, 256, 2e-3),
    }
    assert (found.run.effective_batch_size, found.training.max_length, found.training.learning_rate) == expected[model]
    assert (found.model.use_peft, found.model.load_in_4bit) == (model != "tinyllama.yaml", model == "qlora.yaml")
    if found.model.use_peft:
        assert (found.model.lora_r, found.model.lora_alpha, found.model.lora_dropout) == (16, 16, 0.05)


@pytest.mark.parametrize("name", sorted(p.name for p in (RECIPES / "accelerate").iterdir()))
def test_accelerate_reads_its_configs(name):
    from accelerate.commands.config.config_args import load_config_from_file

    path = RECIPES / "accelerate" / name
    loaded = load_config_from_file(str(path))
    assert loaded.num_processes == yaml.safe_load(path.read_text())["num_processes"]


def test_recipes_are_short_and_teach():
    for name in ("sft_vanilla.py", "sft_indicator.py"):
        text = (RECIPES / name).read_text()
        assert len(text.splitlines()) < 120
        assert "accelerate launch" in text
