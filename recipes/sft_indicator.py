"""Instruction tuning with `[IND]` on context-dependent instructions; all else as in sft_vanilla.py.

    accelerate launch --config_file recipes/accelerate/single_gpu.yaml recipes/sft_indicator.py \\
        --config recipes/configs/models/tinyllama.yaml --config recipes/configs/data/sharegpt.yaml \\
        --data data/sharegpt --scores scores.parquet --output_dir runs/tinyllama-sharegpt-ind

In place of `--scores` (a file of `ctxaware score`), `--seed_model runs/tinyllama-sharegpt` scores on the spot, and
`--rescore_each_epoch true` scores with the model in training. The base with the token is saved once, beside the
output folder (`--prepared_base`). The same command continues an interrupted run. Tried on two CPU cores.
"""

from ctxaware.harness.probe import probe_questions
from ctxaware.training.arguments import Arguments, IndicatorArguments, parse_arguments
from ctxaware.training.base import indicator_base
from ctxaware.training.callback import data_selection
from ctxaware.training.encoding import encode_dataset, make_encoder
from ctxaware.training.run import claimed_run, load_conversations, recipe, train_and_save
from ctxaware.training.trainer import build_trainer
from ctxaware.training.watch import ContextAwarenessCallback


def train(arguments: Arguments) -> None:
    conversations = load_conversations(arguments)
    base, tokenizer = indicator_base(arguments)
    encode = make_encoder(arguments, tokenizer)
    selection = data_selection(arguments, conversations, encode)
    marked_beforehand = selection.table if arguments.training.packing else None
    dataset = encode_dataset(conversations, encode, marked_beforehand, arguments.training.dataset_num_proc)
    trainer = build_trainer(arguments, base, tokenizer, dataset)
    selection.attach(trainer)
    if every := arguments.run.watch_every:
        ContextAwarenessCallback(probe_questions(tokenizer), every, arguments.run.stop_when_fails).attach(trainer)
    train_and_save(trainer, arguments, selection)


@recipe
def main() -> None:
    arguments = parse_arguments(IndicatorArguments)
    with claimed_run(arguments) as to_do:
        if to_do:
            train(arguments)


if __name__ == "__main__":
    main()
