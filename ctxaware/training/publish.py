"""A finished model on the hub: the files that belong to a model, and no others of its folder."""

import fnmatch
from pathlib import Path

from ctxaware.errors import InputError, first_line
from ctxaware.training.arguments import TrainingConfig

# of the output folder; conversations, scores of a seed model, arguments and checkpoints stay at home
PUBLISHED = (
    *("README.md", "config.json", "generation_config.json", "adapter_config.json", "*.safetensors"),
    *("*.safetensors.index.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja"),
    *("vocab.json", "merges.txt", "spiece.model", "selection/*.parquet", "auto_indicator.json"),
)


def published_files(folder: Path) -> list[str]:
    """The files of a model's folder that are pushed, relative to it."""
    files = [*folder.iterdir(), *folder.glob("selection/*")]
    names = sorted(str(path.relative_to(folder)) for path in files if path.is_file() and not path.is_symlink())
    return [name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in PUBLISHED)]


def publish(folder: Path, training: TrainingConfig) -> str:
    """Push a finished model to the hub.

    Args:
        folder: where it is saved.
        training: with the hub's arguments.

    Returns:
        The repository's name.

    Raises:
        InputError: the hub can't be reached or refuses it; the model stays where it is.
    """
    from huggingface_hub import HfApi

    try:
        api = HfApi(token=training.hub_token)
        name = training.hub_model_id or folder.resolve().name
        repository = api.create_repo(name, private=training.hub_private_repo, exist_ok=True).repo_id
        api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            allow_patterns=published_files(folder),
            revision=training.hub_revision,
            commit_message="End of training",
        )
    except (OSError, ValueError) as error:  # no connection, no right to write, a name that is none
        cause = first_line(error)
        raise InputError(
            f"{folder} is trained and saved, but was not pushed ({cause}); the same command tries again"
        ) from error
    return repository
