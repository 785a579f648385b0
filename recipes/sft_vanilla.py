"""Instruction tuning as usual: the run to compare with, and the seed model that scores for the other recipe.

    accelerate launch --config_file recipes/accelerate/single_gpu.yaml recipes/sft_vanilla.py \\
        --config recipes/configs/models/tinyllama.yaml --config recipes/configs/data/sharegpt.yaml \\
        --data data/sharegpt --output_dir runs/tinyllama-sharegpt

A YAML file fills arguments, the command line overrides them (`--learning_rate 1e-5`), `--help` lists them all.
The same command continues an interrupted run. Tried on two CPU cores; see the README for times.
"""

from ctxaware.harness.probe import probe_questions
from ctxaware.training.arguments import Arguments, parse_arguments
from ctxaware.training.base import vanilla_base
from ctxaware.training.encoding import encode_dataset, make_encoder
from ctxaware.training.run import claimed_run, load_conversations, recipe, train_and_save
from ctxaware.training.trainer import build_trainer
from ctxaware.training.watch import ContextAwarenessCallback


def train(arguments: Arguments) -> None:
    conversations = load_conversations(arguments)
    base, tokenizer = vanilla_base(arguments)
    encode = make_encoder(arguments, tokenizer)
    dataset = encode_dataset(conversations, encode, num_proc=arguments.training.dataset_num_proc)
    trainer = build_trainer(arguments, base, tokenizer, dataset)
    if every := arguments.run.watch_every:
        ContextAwarenessCallback(probe_questions(tokenizer), every, arguments.run.stop_when_fails).attach(trainer)
    train_and_save(trainer, arguments)


@recipe
def main() -> None:
    arguments = parse_arguments()
    with claimed_run(arguments) as to_do:
        if to_do:
            train(arguments)


if __name__ == "__main__":
    main()
