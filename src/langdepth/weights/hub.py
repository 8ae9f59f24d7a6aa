"""Weights on the Hugging Face hub, and in a folder laid out as there."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from langdepth.config import to_mapping
from langdepth.errors import CheckpointError, LangdepthError, UsageError, first_line
from langdepth.utils import network
from langdepth.utils.arguments import checked
from langdepth.utils.files import require_marked, temporary_folder
from langdepth.utils.network import hub_or_cache, offline_stated
from langdepth.weights.card import CardOptions, Storable, model_card
from langdepth.weights.files import OWN_CARD, OWN_WEIGHTS, facts_to_store, write, write_text

WEIGHTS_FILE = "model.safetensors"
_OWN = {WEIGHTS_FILE: OWN_WEIGHTS, "config.json": b'{\n  "system": "', "README.md": OWN_CARD}


@checked
def save_pretrained(system: Storable, folder: str | Path, *, load_from: str | None = None, **card: Any) -> Path:
    """Write a folder with the weights, ``config.json`` and the model card ``README.md``; returns the folder.

    Args:
        system: What is written.
        folder: Where; it is made.
        load_from: What the card says to give to ``langdepth.load``; the folder unless given.
        **card: Fields of ``weights.card.CardOptions``: license, license_link, datasets, tags, reports.

    Raises:
        UsageError: For a report that is none, or of another system; nothing is written.
        LangdepthError: For a folder in which a file of somebody else would be replaced; nothing is written.
    """
    if not str(folder):
        raise UsageError("folder: expected the path of a folder, got an empty text")
    folder = Path(folder)
    for name, mark in _OWN.items():
        require_marked(folder / name, mark)
    options = checked(CardOptions)(**card)
    facts = facts_to_store(system, options.facts())
    text = model_card(system, facts, load_from or str(folder), options)
    write(system, folder / WEIGHTS_FILE, facts)
    config = {"system": system.name, **to_mapping(system.config)}
    write_text(folder / "config.json", json.dumps(config, indent=2))
    write_text(folder / "README.md", text)
    return folder


@checked
def push_to_hub(
    system: Storable,
    repo_id: str,
    *,
    commit_message: str = "Upload weights",
    revision: str | None = None,
    create_pr: bool = False,
    private: bool = True,
    token: str | None = None,
    **card: Any,
) -> str:
    """Upload what ``save_pretrained`` writes to a repository, made if missing.

    Args:
        system: What is uploaded.
        repo_id: "owner/name".
        commit_message: Of the commit.
        revision: The branch, made if missing; the default branch unless given.
        create_pr: Propose the commit as a pull request instead.
        private: Whether a repository that is made is private.
        token: Instead of the one of `hf auth login`.
        **card: As ``save_pretrained`` takes them.

    Returns:
        The address of the pull request, or of the repository.

    Raises:
        UsageError: For a name that no repository has.
        LangdepthError: The hub refused; with its answer.
    """
    from huggingface_hub import HfApi, constants

    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo_id):
        raise UsageError(f"'{repo_id}' is no repository of the hub; name it owner/name")
    problem = None if offline_stated() else network.unreachable(constants.ENDPOINT)
    if problem is not None:  # its client waits for an answer for ever
        raise LangdepthError(f"{repo_id}: the hub {constants.ENDPOINT} cannot be reached ({problem})")
    with temporary_folder() as folder:
        save_pretrained(system, folder, load_from=f"{repo_id}@{revision}" if revision else repo_id, **card)
        api = HfApi(token=token)
        try:
            address = api.create_repo(repo_id, private=private, exist_ok=True)
            if revision is not None and not create_pr:
                api.create_branch(repo_id, branch=revision, exist_ok=True)
            done = api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                commit_message=commit_message,
                revision=revision,
                create_pr=create_pr,
            )
        except Exception as error:  # the hub client raises its own, its transport's and plain value errors
            raise LangdepthError(f"{repo_id}: upload to the hub failed: {first_line(error)}") from error
    return str(done.pr_url if create_pr else address)


def download(repo: str, revision: str | None, offline: bool | None, file: str = WEIGHTS_FILE) -> Path:
    """A file of a hub repository, by default its weights, in the hub's cache. Raises CheckpointError.

    ``offline``: use only what the cache holds; None follows the environment variable HF_HUB_OFFLINE.
    """
    import huggingface_hub
    from huggingface_hub import constants, errors

    if offline is None:
        offline = offline_stated()
    at = f"{repo}@{revision}" if revision else repo
    try:
        with hub_or_cache():
            found = huggingface_hub.hf_hub_download(
                repo, file, revision=revision, local_files_only=offline, library_name="langdepth"
            )
        return Path(found)
    except errors.LocalEntryNotFoundError:
        why = "offline" if offline else "the hub cannot be reached"
        problem = (
            f"'{file}' is not in the cache {constants.HF_HUB_CACHE} and {why}; load it once with network, "
            "or fetch that file on another machine and give its path instead"
        )
    except errors.RevisionNotFoundError:
        problem = f"the hub has no such revision of '{repo}'"
    except errors.EntryNotFoundError:
        problem = f"the hub repository has no '{file}'"
    except errors.RepositoryNotFoundError:
        problem = (
            "neither a file here nor a repository on the hub that you may read; check the name, "
            "or log in with `hf auth login` if it is private"
        )
    except Exception as error:  # the client's transport has exceptions of its own
        problem = f"download from the hub failed: {first_line(error)}"
    raise CheckpointError(f"{at}: {problem}")
