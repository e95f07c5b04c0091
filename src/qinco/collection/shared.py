"""Collections on the Hugging Face hub: `SharedCollection` says how they are written there and read, also named ones."""

import secrets
from pathlib import Path
from typing import Any, Self

from qinco.atomic import replace_path, user_path
from qinco.hub.pretrained import Pretrained


class SharedCollection(Pretrained):
    """A collection as a folder of a repository."""

    _hub_kind, _hub_content = "collection", "collection"

    @classmethod
    def from_pretrained(
        cls, repo, folder=None, *, device: str = "cpu", revision: str | None = None,
        token: str | bool | None = None, cache_dir=None, local_files_only: bool = False, force_download: bool = False,
    ) -> Self:  # fmt: skip
        """Open what `save_pretrained` wrote or `push_to_hub` shared; executes no code.

        Args:
            repo: a folder, or the name of a repository of the Hugging Face hub, "owner/name".
            folder: of a copy that can be written to, which is made; None: the collection is only read, where it lies.
            device: where the codec computes.
            revision: branch, tag or commit of the repository.
            token: of the hub, for private repositories; the one that is stored if None.
            cache_dir, local_files_only, force_download: as of `huggingface_hub.snapshot_download`.

        Example:
            >>> docs.save_pretrained("shared-docs", overwrite=True)
            PosixPath('shared-docs')
            >>> Collection.from_pretrained("shared-docs").count()
            2
        """
        options = {"revision": revision, "token": token, "cache_dir": cache_dir,
                   "local_files_only": local_files_only, "force_download": force_download}  # fmt: skip
        collection: Any = cls._hub_read(cls._hub_place(repo, options), device)
        if folder is None:
            return collection
        with collection:
            collection.snapshot(folder)
        return type(collection).open(user_path(folder), device=device)

    def _hub_config(self: Any) -> tuple[dict, dict]:
        stats = self.stats()
        config = {"num_vectors": stats["vectors"], "records": stats["records"], "multi": self.is_multi}
        names = ("dim", "metric", "bytes_per_vector", "codec")
        return config | {name: stats[name] for name in names}, stats["recall"] or {}

    def _hub_write(self: Any, place: Path) -> None:
        new = place.with_name(f".{place.name}.{secrets.token_hex(4)}")
        self.snapshot(new)
        replace_path(place, new)

    @classmethod
    def _hub_read(cls: Any, place: Path, device: str):
        return cls.open(place, read_only=True, device=device)
