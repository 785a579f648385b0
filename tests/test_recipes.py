"""The recipes as scripts: run, killed, taken up, refused; in one process and in two."""

import pytest

pytest.importorskip("trl")
pytest.importorskip("peft")

import json
import os
import re
import runpy
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

import pyarrow.parquet as pq
from safetensors.torch import load_file
from support import faults
from support.training_runs import command, prepared_base, write_data

ROOT = Path(__file__).parents[1]
METHODS = {
    "full": (),
    "lora": ("--use_peft", "true", "--lora_target_modules", "q_proj", "v_proj"),
    "qlora": ("--use_peft", "true", "--lora_target_modules", "q_proj", "v_proj", "--load_in_4bit", "true"),
}
RESUMABLE = ("--num_train_epochs", "2", "--save_strategy", "steps", "--save_steps", "2", "--save_total_limit", "3")
RESCORED = ("--rescore_each_epoch", "true", "--score_layer", "1")


def start_recipe(name, argv, log, on_step=lambda step: None):
    """The process id of a recipe in a child process (forked: no time for imports); `on_step` is called there."""
    child = os.fork()
    if child:
        return child
    sys.stdout = sys.stderr = open(log, "w")  # noqa: SIM115 - the process ends with it
    status = 1
    try:
        from ctxaware.training.checkpoints import CompleteCheckpoints

        CompleteCheckpoints.on_step_end = lambda self, args, state, control, **_: on_step(state.global_step)
        sys.argv = [name, *argv]
        runpy.run_path(str(ROOT / "recipes" / name), run_name="__main__")
        status = 0
    except SystemExit as error:
        status = error.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)


def recipe(name, argv, log, kill_at=None):
    """Exit status of a recipe in a child process, which dies by kill -9 at a step."""

    def die(step):
        if step == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    return os.waitstatus_to_exitcode(os.waitpid(start_recipe(name, argv, log, die), 0)[1])


def saved(out):
    (file,) = out.glob("*.safetensors")
    return {name: value.numpy().tobytes() for name, value in load_file(file).items()}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data") / "chats.jsonl")


@pytest.mark.parametrize("method", METHODS)
def test_kill_9_and_the_same_command_give_the_same_weights(data, tmp_path, method):
    if method == "qlora":
        pytest.importorskip("bitsandbytes")
    base = prepared_base(tmp_path / "base", hidden_size=64)
    # on the CPU bitsandbytes packs 4-bit weights for a forward pass in evaluation mode and does not unpack them
    # exactly: after scoring with the model in training, a run that was not interrupted differs from one that was
    chosen = ("--seed_model", str(base), "--score_layer", "1") if method == "qlora" else RESCORED
    more = (*METHODS[method], *RESUMABLE, *chosen, "--threshold", "0.3")
    whole, killed, log = tmp_path / "whole", tmp_path / "killed", tmp_path / "log"
    assert recipe("sft_indicator.py", command(base, data, whole, *more), log) == 0, log.read_text()
    argv = command(base, data, killed, *more)
    assert recipe("sft_indicator.py", argv, log, kill_at=5) == -signal.SIGKILL
    assert not list(killed.glob("*.safetensors"))
    first = {path: path.stat().st_mtime_ns for path in (killed / "selection").iterdir()}
    assert len(first) == (1 if method == "qlora" else 2), "each epoch has a selection of its own"
    optimizer = killed / "checkpoint-4" / "optimizer.pt"
    if method == "lora":  # a checkpoint that was cut off is passed over
        optimizer.write_bytes(optimizer.read_bytes()[:100])
    assert recipe("sft_indicator.py", argv, log) == 0, log.read_text()
    told = log.read_text()
    assert ("checkpoint-4 is incomplete or damaged, and passed over" in told) == (method == "lora")
    assert f"taking up the run at {killed}/checkpoint-{2 if method == 'lora' else 4}" in told
    assert {path: path.stat().st_mtime_ns for path in (killed / "selection").iterdir()} == first, "scored again"
    assert saved(killed) == saved(whole)
    assert recipe("sft_indicator.py", argv, log) == 0
    assert "is trained already" in log.read_text()
    assert recipe("sft_indicator.py", [*argv, "--seed", "7"], log) == 2
    assert (
        log.read_text()
        .splitlines()[-1]
        .startswith(f"error: {killed} holds a run with seed 42 (now 7); choose another output")
    )


def launch_two(argv):
    """The command line that starts the indicator recipe in two processes."""
    config = str(ROOT / "recipes" / "accelerate" / "cpu_two.yaml")
    return [
        *(sys.executable, "-m", "accelerate.commands.launch", "--config_file", config, "--main_process_port", "0"),
        *(str(ROOT / "recipes" / "sft_indicator.py"), *argv),
    ]


ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.mark.long
def test_two_processes_are_two_and_equal_one_with_twice_the_accumulation(data, tmp_path):
    base = prepared_base(tmp_path / "base")
    more = (
        *RESUMABLE,
        *RESCORED,
        "--seed_model",
        str(base),
        "--threshold",
        "0.28",
    )  # scores of the first epoch; then the model in training
    one, two, log = tmp_path / "one", tmp_path / "two", tmp_path / "log"
    assert recipe("sft_indicator.py", command(base, data, one, *more), log) == 0, log.read_text()
    done = subprocess.run(
        launch_two(command(base, data, two, *more)), capture_output=True, text=True, env=ENVIRONMENT, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "2 processes x 2 conversations x 1 steps of accumulation = effective batch of 4" in done.stdout
    card = (two / "README.md").read_text()
    for part in (f"`{base}` (sha256:", "12 conversations, 24 instructions", "full fine-tuning", "| seed | 42 |"):
        assert part in card
    for part in ("a score above 0.28", "anew at each epoch", "trl 1", "sft_indicator.py --model_name_or_path", "[IND]"):
        assert part in card
    (share,) = re.findall(r"\| share with the indicator \| (0\.\d+) \|", card)
    assert 0.1 < float(share) < 0.9
    for name in ("epoch-0", "epoch-1"):
        tables = [pq.read_table(out / "selection" / f"{name}.parquet") for out in (one, two)]
        assert tables[0].equals(tables[1])
        assert 0 < sum(tables[0]["selected"].to_pylist()) < 24
    assert json.loads((two / "run.json").read_text())["configuration"]["num_processes"] == 2
    assert len(list(two.glob("checkpoint-6/rng_state_*.pth"))) == 2
    assert saved(two) == saved(one)


@pytest.mark.long
def test_two_processes_share_the_probe_and_score_it_as_one(data, tmp_path):
    base = prepared_base(tmp_path / "base")
    one, two, log = tmp_path / "one", tmp_path / "two", tmp_path / "log"
    more = (*RESCORED, "--watch_every", "100", "--threshold", "0.28")
    assert recipe("sft_indicator.py", command(base, data, one, *more), log) == 0, log.read_text()
    subprocess.run(launch_two(command(base, data, two, *more)), check=True, env=ENVIRONMENT)
    probes = json.loads((one / "watch.json").read_text())["probes"]
    assert [probe["step"] for probe in probes] == [0, 3]
    assert {len(probe["scores"]) for probe in probes} == {72}  # needles and passages, without [IND] and with it
    assert (two / "watch.json").read_text() == (one / "watch.json").read_text()


@pytest.mark.long
def test_two_processes_killed_and_started_again_give_the_same_weights(data, tmp_path):
    base = prepared_base(tmp_path / "base")
    epochs = ("--num_train_epochs", "12", "--save_strategy", "steps", "--save_steps", "4", "--threshold", "0.28")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    argv = command(base, data, killed, *METHODS["lora"], *RESCORED, *epochs)
    running = subprocess.Popen(launch_two(argv), env=ENVIRONMENT, start_new_session=True)
    while not (killed / "checkpoint-8" / "complete.json").is_file():
        assert running.poll() is None, "ended before it could be killed"
        time.sleep(0.05)
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    assert not list(killed.glob("*.safetensors"))
    subprocess.run(launch_two(argv), check=True, env=ENVIRONMENT)
    argv[argv.index(str(killed))] = str(whole)
    subprocess.run(launch_two(argv), check=True, env=ENVIRONMENT)
    assert saved(killed) == saved(whole)


def stopped_when(is_time, words, to_all, number):
    """What a launcher and its processes print that get a signal when it is time; none of them may be left."""
    running = subprocess.Popen(
        words, env=ENVIRONMENT, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    while not is_time():
        assert running.poll() is None, running.stdout.read()
        time.sleep(0.02)
    (os.killpg if to_all else os.kill)(running.pid, number)
    printed, _ = running.communicate(timeout=300)
    assert running.returncode != 0
    assert faults.processes_of(running.pid) == []
    return printed


SIGNALS = pytest.mark.parametrize(("to_all", "number"), [(False, signal.SIGTERM), (True, signal.SIGINT)])
SAID = "interrupted: what is done is kept; run the same command again to go on"


@pytest.mark.long
@SIGNALS
def test_two_processes_of_training_are_stopped_and_go_on(data, tmp_path, to_all, number):
    """SIGTERM to the launcher, and Ctrl-C to all: our line once (the launcher adds a traceback of its own)."""
    base = prepared_base(tmp_path / "base")
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    epochs = ("--num_train_epochs", "12", "--save_strategy", "steps", "--save_steps", "4")
    more = (*epochs, *RESCORED, "--threshold", "0.28")
    words = launch_two(command(base, data, stopped, *more))
    printed = stopped_when((stopped / "checkpoint-4" / "complete.json").is_file, words, to_all, number)
    assert printed.count(SAID) == 1, printed
    assert not list(stopped.glob("*.safetensors"))
    assert faults.unfinished(stopped) == []
    subprocess.run(words, check=True, env=ENVIRONMENT)
    one = command(base, data, whole, *more)  # one process with twice the accumulation is the same
    assert recipe("sft_indicator.py", one, tmp_path / "log") == 0, (tmp_path / "log").read_text()
    assert saved(stopped) == saved(whole)


@pytest.mark.long
@SIGNALS
def test_two_processes_that_score_are_stopped_and_go_on(tmp_path, to_all, number):
    base, chats = prepared_base(tmp_path / "base"), write_data(tmp_path / "chats.jsonl", 1500)
    whole, stopped = tmp_path / "whole.parquet", tmp_path / "stopped.parquet"

    def score(out):
        options = ("--layer", "1", "--device", "cpu", "--max-length", "128", "--batch-tokens", "256")
        return list(map(str, ("score", chats, "--model", base, *options, "--out", out)))

    parts, words = Path(f"{stopped}.parts"), [*launch_two([])[:-1], "-m", "ctxaware", *score(stopped)]
    printed = stopped_when(lambda: any(parts.glob("shard-*")), words, to_all, number)
    assert printed.count(SAID) == 1, printed
    assert not stopped.exists()
    subprocess.run(words, check=True, env=ENVIRONMENT)
    assert faults.run(score(whole), tmp_path / "log") == 0, (tmp_path / "log").read_text()
    assert stopped.read_bytes() == whole.read_bytes()
    assert not parts.exists()


def test_a_hub_token_is_written_nowhere(data, tmp_path):
    base, out, log = prepared_base(tmp_path / "base"), tmp_path / "run", tmp_path / "log"
    inner = json.dumps({"token": "planted-inside"})
    argv = command(base, data, out, "--hub_token=planted-token", "--model_init_kwargs", inner, *RESUMABLE)
    assert recipe("sft_vanilla.py", argv, log) == 0, log.read_text()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"training_args.bin", "README.md", "run.json"} <= {path.name for path in files}
    leaks = [path for path in files if b"planted" in path.read_bytes()]
    assert not leaks
    assert "--hub_token=<hidden>" in (out / "README.md").read_text().replace("'", "")
    log.unlink()
    assert recipe("sft_vanilla.py", [*argv, "--hub_tokn", "planted-token"], log) == 2
    assert "unknown argument --hub_tokn" in log.read_text()
    assert "planted" not in log.read_text()


@pytest.mark.parametrize(
    ("more", "cause"),
    [
        (("--learning_rate", "1e30"), r"(loss|grad_norm) is (nan|inf) at step 2; lower the learning rate"),
        (("--weight_decay", "nan", "--num_train_epochs", "0.3"), r"weights that are not finite at step 1; lower"),
        (("--num_train_epochs", "0"), "no step was taken; raise num_train_epochs or max_steps"),
    ],
)
def test_training_that_failed_is_not_called_finished(data, tmp_path, more, cause):
    base, out, log = prepared_base(tmp_path / "base"), tmp_path / "run", tmp_path / "log"
    assert recipe("sft_vanilla.py", command(base, data, out, *more, "--save_strategy", "steps"), log) == 1
    last = log.read_text().splitlines()[-1]
    assert re.fullmatch(f"error: .*{cause}.*", last)
    assert "finished" not in json.loads((out / "run.json").read_text())
    assert not list(out.glob("*.safetensors"))
    if "--weight_decay" in more:
        assert not list(out.glob("checkpoint-*/complete.json")), "a checkpoint of bad weights would be taken up"


def test_names_in_the_card_are_text(tmp_path):
    from markdown_it import MarkdownIt

    evil = "x|`y`\n# Owned\n```\n<img src=x onerror=alert(1)>\n---\n"
    folder = tmp_path / f"base {evil.replace('/', '')}"
    base, data = prepared_base(folder), write_data(tmp_path / f"chats {evil}.jsonl")
    out, log = tmp_path / f"run {evil}", tmp_path / "log"
    more = ("--run_name", f"{evil}\udcff", *RESCORED, "--threshold", "0.28")
    assert recipe("sft_indicator.py", command(base, data, out, *more), log) == 0, log.read_text()
    card = (out / "README.md").read_text()
    _, header, body = card.split("---\n", 2)
    assert "Owned" not in header
    tokens = MarkdownIt("commonmark").enable("table").parse(body)
    kinds = [token.type for token in tokens]
    assert kinds.count("heading_open") == 4
    assert kinds.count("fence") == 3
    assert kinds.count("tr_open") == 11  # a head, which is empty, and ten rows
    assert "hr" not in kinds
    inside = [child for token in tokens for child in token.children or ()]
    assert not {"html_block", "html_inline", "image", "link_open"} & {*kinds, *(child.type for child in inside)}
    assert sum("Owned" in child.content for child in inside if child.type == "code_inline") == 4


def test_a_second_run_on_one_output_is_refused_while_the_first_is_at_work(data, tmp_path):
    base, out, log = prepared_base(tmp_path / "base"), tmp_path / "run", tmp_path / "log"
    argv = command(base, data, out)
    first = start_recipe("sft_vanilla.py", argv, log, lambda step: os.kill(os.getpid(), signal.SIGSTOP))
    _, status = os.waitpid(first, os.WUNTRACED)
    assert os.WIFSTOPPED(status), log.read_text()
    try:
        for more in ((), ("--seed", "7")):
            assert recipe("sft_vanilla.py", [*argv, *more], tmp_path / "log2") == 2
            assert f"error: another process is writing {out}; wait for it" in (tmp_path / "log2").read_text()
    finally:
        while os.WIFSTOPPED(status):
            os.kill(first, signal.SIGCONT)
            _, status = os.waitpid(first, os.WUNTRACED)
    assert os.waitstatus_to_exitcode(status) == 0, log.read_text()
    assert json.loads((out / "run.json").read_text())["configuration"]["seed"] == 42
    assert recipe("sft_vanilla.py", [*argv, "--seed", "7"], tmp_path / "log2") == 2
    assert "holds a run with seed 42 (now 7)" in (tmp_path / "log2").read_text()


@pytest.mark.long
def test_while_one_process_of_a_killed_launcher_lives_the_rerun_is_refused(data, tmp_path):
    import psutil

    base, out, log = prepared_base(tmp_path / "base"), tmp_path / "run", tmp_path / "log"
    argv = command(base, data, out, *RESCORED, "--num_train_epochs", "50", *RESUMABLE[2:])
    launcher = subprocess.Popen(launch_two(argv), env=ENVIRONMENT)
    while not (out / "checkpoint-2" / "complete.json").is_file():
        assert launcher.poll() is None, "ended before it could be killed"
        time.sleep(0.05)
    ranks = {child.environ()["RANK"]: child for child in psutil.Process(launcher.pid).children()}
    assert set(ranks) == {"0", "1"}
    try:
        for child in ranks.values():
            child.suspend()
        launcher.kill()
        launcher.wait()
        for gone in ("0", "1"):
            assert recipe("sft_indicator.py", argv, log) == 2
            assert "another process is writing" in log.read_text()
            ranks[gone].kill()
            psutil.wait_procs([ranks[gone]])
    finally:
        for child in ranks.values():
            if child.is_running():
                child.kill()
    assert recipe("sft_indicator.py", argv, log) == 2, "one process is another configuration than two"
    assert "num_processes 2 (now 1)" in log.read_text()


def test_mistakes_are_one_line_and_exit_code_2(data, tmp_path):
    base = prepared_base(tmp_path / "base")
    log = tmp_path / "log"
    for name, more, told in (
        ("sft_vanilla.py", ("--effective_batch_size", "5"), "effective_batch_size must be a multiple of 2"),
        ("sft_vanilla.py", ("--chat_template", "llama"), "chat_template must be one of tinyllama, own"),
        (
            "sft_indicator.py",
            (),
            "nothing says which instructions get [IND]; pass --scores, --seed_model or --rescore_each_epoch true",
        ),
        ("sft_indicator.py", ("--seed_model", "m", "--threshold", "nan"), "threshold must be in 0–1, as scores are"),
        (
            "sft_indicator.py",
            ("--seed_model", str(base), "--score_layer", "1", "--threshold", "1"),
            "with threshold 1 no instruction is selected of 18 that have a score; scores reach from 0.",
        ),
        ("sft_indicator.py", ("--scores", "none.parquet"), "none.parquet does not exist; make it with ctxaware score"),
        (
            "sft_indicator.py",
            ("--seed_model", str(base)),
            "must be in 0–1 for this model, got 15; pass --score_layer 1",
        ),
    ):
        assert recipe(name, command(base, data, tmp_path / f"{name}{len(more)}{more[-1:]}", *more), log) == 2
        last = log.read_text().splitlines()[-1]
        assert last.startswith("error: ")
        assert told in last
