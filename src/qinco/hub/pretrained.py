"""`Pretrained`: what `Codec`, `Index` and `Collection` share of the Hugging Face hub.

A repository, or a folder like one, holds the content, config.json, which says what it is, and README.md, the card.
"""

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Self

from qinco.atomic import make_folder, user_path, write_atomically
from qinco.errors import ConfigError, DataError, QincoError, needs_extra
from qinco.hub.card import render
from qinco.version import __version__

CONFIG, README, FORMAT_VERSION = "config.json", "README.md", 1
_CLASSES = {"codec": "Codec", "index": "Index", "collection": "Collection", "named_collection": "NamedCollection"}


class Pretrained(ABC):
    """What can be shared. A subclass says what kind it is, how that is written to a place and read from it."""

    _hub_kind: ClassVar[str]
    _hub_content: ClassVar[str]  # a file, or a folder, of a repository

    @classmethod
    def from_pretrained(
        cls, repo, *, device: str = "cpu", revision: str | None = None, token: str | bool | None = None, cache_dir=None,
        local_files_only: bool = False, force_download: bool = False,
    ) -> Self:  # fmt: skip
        """Load what `save_pretrained` wrote or `push_to_hub` shared; executes no code.

        Args:
            repo: a folder, or the name of a repository of the Hugging Face hub, "owner/name".
            device: where codecs compute.
            revision: branch, tag or commit of the repository.
            token: of the hub, for private repositories; the one that is stored if None.
            cache_dir, local_files_only, force_download: as of `huggingface_hub.snapshot_download`.

        Example:
            >>> codec.save_pretrained("shared", overwrite=True)
            PosixPath('shared')
            >>> Codec.from_pretrained("shared").dim
            8
        """
        options = {"revision": revision, "token": token, "cache_dir": cache_dir,
                   "local_files_only": local_files_only, "force_download": force_download}  # fmt: skip
        return cls._hub_read(cls._hub_place(repo, options), device)

    def save_pretrained(
        self, folder, *, metadata: Mapping[str, Any] | None = None, measured: Mapping[str, Any] | None = None,
        readme: str | bool = True, overwrite: bool = False,
    ) -> Path:  # fmt: skip
        """Write a folder as the Hugging Face hub has it: the content, config.json and a card, README.md.

        Args:
            folder: that is made, if it is missing.
            metadata: of the card: {"license": "mit", "base_model": "owner/name", "datasets": ["owner/name"]}, and
                whatever else the hub knows.
            measured: figures for the card and config.json: of a codec those of
                `qinco.integrations.hub.measure_codec`, else those of `evaluate`, of named vectors as
                {"vectors": {name: figures}}. No others are shown but what the training or creation measured.
            readme: the text of the card instead; False: none is written.
            overwrite: replace what is there.

        Returns:
            The folder.
        """
        folder = Path(user_path(folder))
        self._hub_save(folder, folder.absolute().name, metadata, measured, readme, overwrite)
        return folder

    def push_to_hub(
        self, repo_id: str, *, metadata: Mapping[str, Any] | None = None, measured: Mapping[str, Any] | None = None,
        readme: str | bool = True, private: bool | None = None, token: str | bool | None = None,
        revision: str | None = None, commit_message: str | None = None, create_pr: bool = False,
    ) -> str:  # fmt: skip
        """Upload what `save_pretrained` writes to a repository of the Hugging Face hub, which is made if it is missing.

        Args:
            repo_id: "owner/name".
            metadata, measured, readme: as of `save_pretrained`; readme=False keeps the card that is there.
            private: of a new repository; None: as the owner's settings say.
            token: of the hub; the one that is stored if None.
            revision: the branch.
            commit_message: of the commit.
            create_pr: propose the change instead.

        Returns:
            The address of the commit, or of the proposal.
        """
        kind, content = self._hub_kind, self._hub_content
        with needs_extra("push_to_hub", "huggingface_hub", "hub"):
            from huggingface_hub import HfApi

        with TemporaryDirectory(prefix="qinco-") as name:
            self._hub_save(Path(name), repo_id, metadata, measured, readme, True)
            api = HfApi(token=token, library_name="qinco", library_version=__version__)
            with _said(f"cannot upload to {repo_id}", "see that its name and token= are right"):
                api.create_repo(repo_id, private=private, exist_ok=True)
                if revision is not None and not create_pr:
                    api.create_branch(repo_id, branch=revision, exist_ok=True)
                done = api.upload_folder(
                    repo_id=repo_id, folder_path=name, revision=revision, create_pr=create_pr,
                    commit_message=commit_message or f"Upload {kind.replace('_', ' ')} with qinco",
                    delete_patterns=None if "." in content else [f"{content}/*"],  # parts that have other names now
                )  # fmt: skip
        return str((done.pr_url if create_pr else None) or done.commit_url)

    def _hub_save(self, folder: Path, name: str, metadata, measured, readme, overwrite: bool) -> None:
        if not isinstance(readme, str | bool):
            raise ConfigError(f"readme must be the text of a card, true or false, not {readme!r:.60}")
        for key, given in (("metadata", metadata), ("measured", measured)):
            if not isinstance(given, Mapping | None):
                raise ConfigError(f"{key} must be a mapping of names to values, not {given!r:.60}")
        config, own = self._hub_config()
        measured = _plain({**own, **(measured or {})})
        config = {"library_name": "qinco", "kind": self._hub_kind, "format_version": FORMAT_VERSION, **config}
        config |= {"measured": measured} if measured else {}
        text = render(name, self._hub_kind, config, _plain(metadata or {}), measured) if readme is True else readme
        names = [self._hub_content, CONFIG, *([README] if text else [])]
        if (there := [one for one in names if (folder / one).exists()]) and not overwrite:
            raise ConfigError(f"{folder} holds {there[0]}: give overwrite=true to replace it")
        make_folder(folder)
        self._hub_write(folder / self._hub_content)
        _write(folder / CONFIG, json.dumps(config, indent=2, ensure_ascii=False) + "\n")
        if text:
            _write(folder / README, str(text))

    @classmethod
    def _hub_place(cls, repo, options: dict) -> Path:
        """Where the content lies, downloaded if need be."""
        if not isinstance(repo, str | os.PathLike):
            raise ConfigError(f"give a folder or the name of a repository, not {repo!r:.60}")
        folder, kind = Path(user_path(repo)), cls._hub_kind
        if not folder.is_dir():
            folder = _download(str(repo), [CONFIG, cls._hub_content, f"{cls._hub_content}/*"], options)
        held = _kind_of(folder / CONFIG) if (folder / CONFIG).is_file() else kind
        if held in _CLASSES and held != kind:
            raise DataError(f"{repo} holds a qinco {_CLASSES[held]}, not a {_CLASSES[kind]}: use "
                            f"{_CLASSES[held]}.from_pretrained")  # fmt: skip
        if not (folder / cls._hub_content).exists():
            raise DataError(
                f"{repo} holds no {cls._hub_content}: see that it is a {_CLASSES[kind]} that save_pretrained wrote"
            )
        return folder / cls._hub_content

    @abstractmethod
    def _hub_config(self) -> tuple[dict, dict]:
        """What config.json says of this, and what was measured when it was made."""

    @abstractmethod
    def _hub_write(self, place: Path) -> None:
        """Write the content to a place where there is none, or replace what is there."""

    @classmethod
    @abstractmethod
    def _hub_read(cls, place: Path, device: str) -> Self:
        """The content that lies at a place."""


def _download(repo: str, patterns: list[str], options: dict) -> Path:
    if repo.count("/") != 1 or repo.startswith((".", "/", "~")):
        raise DataError(f"{repo} is neither a folder nor the name of a repository, owner/name: save_pretrained and "
                        "push_to_hub make them")  # fmt: skip
    with needs_extra("a repository of the Hugging Face hub", "huggingface_hub", "hub"):
        from huggingface_hub import snapshot_download

    with _said(f"cannot download {repo}", "see that its name, revision= and token= are right"):
        settings = {"allow_patterns": patterns, "library_name": "qinco", "library_version": __version__}
        return Path(snapshot_download(repo, **settings, **options))


@contextmanager
def _said(what: str, remedy: str) -> Iterator[None]:
    """One sentence for whatever a client of the hub raises: errors of its own, of HTTP libraries and of files."""
    try:
        yield
    except QincoError:
        raise
    except Exception as error:
        reason = str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
        raise DataError(f"{what} ({reason:.300}): {remedy}") from error


def _kind_of(path: Path) -> str | None:
    try:
        config = json.loads(path.read_text("utf-8"))
        version = config.get("format_version", FORMAT_VERSION)
        if config.get("kind") not in _CLASSES:  # that of another library
            return None
        if version > FORMAT_VERSION:
            raise DataError(f"{path} has format version {version}, newer than {FORMAT_VERSION}: update qinco")
        return config["kind"]
    except (OSError, ValueError, TypeError, AttributeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} is damaged, as it is no JSON object: write it again with save_pretrained") from None


def _plain(values: Mapping) -> dict:
    """As JSON gives it back: names are texts, and numbers of numpy are plain."""
    try:
        return json.loads(json.dumps(values, default=_of_numpy))
    except (TypeError, ValueError):
        raise ConfigError(f"metadata and figures must be JSON values, not {values!r:.100}") from None


def _of_numpy(value: Any):
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"{type(value).__name__} is no JSON value")


def _write(path: Path, text: str) -> None:
    with write_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
