"""Training that failed is not called finished: losses and weights that are no numbers, or no step at all."""

import math
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class FailedTrainingError(RuntimeError):
    """Training went wrong in a way that its arguments didn't show: nothing it made should be used."""


class FiniteTraining(TrainerCallback):
    """Ends training at the first loss, gradient norm or saved weight that is not finite.

    Raises:
        FailedTrainingError: in every process that sees it.
    """

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        # float16 training skips steps whose gradients overflow
        for name in ("loss",) if args.fp16 else ("loss", "grad_norm"):
            value = (logs or {}).get(name)
            if value is not None and not math.isfinite(float(value)):
                raise FailedTrainingError(
                    f"{name} is {float(value)} at step {state.global_step}; lower the learning rate or check the data"
                )

    def on_save(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: torch.nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        if model is not None:
            check_weights(model, state.global_step)


def check_weights(model: torch.nn.Module, step: int) -> None:
    """Check the trained weights; where FSDP shards them, the ones that this process has.

    Raises:
        FailedTrainingError: one of them is not finite.
    """
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not torch.isfinite(parameter).all():
            raise FailedTrainingError(
                f"{name} has weights that are not finite at step {step}; lower the learning rate or the weight decay"
            )


def check_trained(trainer: Trainer) -> None:
    """Check what training came to, before it is saved as a result.

    Raises:
        FailedTrainingError: no step was taken, or a weight is not finite.
    """
    if not trainer.state.global_step:
        raise FailedTrainingError("no step was taken; raise num_train_epochs or max_steps")
    check_weights(trainer.model, trainer.state.global_step)
