"""Which arguments of a recipe change nothing in the weights: a run may be taken up with others."""

FREE = (  # starts of their names
    *("disable_tqdm", "hub_", "log", "push_to_hub", "report_to", "run_name", "save_", "local_rank", "watch_every"),
    *("dataloader_num_workers", "dataloader_persistent_workers", "dataloader_pin_memory", "dataloader_prefetch_factor"),
)


def changes_weights(argument: str) -> bool:
    """Whether another value of this argument could give other weights."""
    return not argument.startswith(FREE)
