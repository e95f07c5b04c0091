import json
import os
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from small_indexes import built, copied, trained, vectors

import qinco
from qinco.errors import ConfigError, DataError

KINDS = {"codec": qinco.Codec, "index": qinco.Index, "collection": qinco.Collection,
         "named_collection": qinco.NamedCollection}  # fmt: skip


@pytest.fixture
def docs(tmp_path):
    with qinco.Collection.create(tmp_path / "docs.qinco", codec=trained("plain"), metric="l2") as docs:
        docs.upsert(range(100), vectors(100), [{"year": 2000 + number % 20} for number in range(100)])
        docs.optimize()
        docs.upsert(["fresh"], vectors(1, 9))
        yield docs


@pytest.fixture
def named(tmp_path):
    kinds = {"image": {"codec": trained("plain"), "metric": "l2"}, "te|xt": {}}
    with qinco.NamedCollection.create(tmp_path / "named.qinco", kinds) as docs:
        docs.upsert(range(100), {"image": vectors(100), "te|xt": [None, *vectors(99, 7)[:, :4]]})
        docs.optimize()
        docs.upsert(["fresh"], {"image": vectors(1, 9)})
        yield docs


@pytest.fixture(params=KINDS)
def saved(request, docs, named):
    return {"codec": trained("product"), "index": copied(built()), "collection": docs,
            "named_collection": named}[request.param]  # fmt: skip


def names_in(folder) -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir())


def kind_of(thing) -> str:
    return next(kind for kind, of in KINDS.items() if isinstance(thing, of))


def answers(thing) -> list:
    """What tells two apart."""
    if isinstance(thing, qinco.Codec):
        return thing.encode(vectors(50)).codes.tolist()
    if isinstance(thing, qinco.Index):
        return [column.tolist() for column in thing.search(vectors(5, 3), 10)]
    using = {"using": "image"} if isinstance(thing, qinco.NamedCollection) else {}
    return [(hit.id, hit.score, hit.payload) for hits in thing.search(vectors(5, 3), 10, **using) for hit in hits]


def test_what_is_saved_comes_back(saved, tmp_path):
    kind, expected = kind_of(saved), answers(saved)
    folder = saved.save_pretrained(tmp_path / "shared")
    assert folder == tmp_path / "shared" and answers(saved) == expected
    content = {"codec": "model.safetensors", "named_collection": "collection"}.get(kind, kind)
    assert names_in(folder) == sorted(["README.md", "config.json", content])
    config = json.loads((folder / "config.json").read_text())
    assert (config["library_name"], config["kind"], config["format_version"]) == ("qinco", kind, 1)
    dims = [one["dim"] for one in config["vectors"].values()] if kind == "named_collection" else config["dim"]
    assert (
        dims == ([6, 4] if kind == "named_collection" else saved.dim)
        and "provenance" not in config
        and "measured" not in config
    )
    for given in (folder, str(folder)):
        loaded = type(saved).from_pretrained(given)
        assert type(loaded) is type(saved) and answers(loaded) == expected


def test_a_codec_is_the_file_that_save_writes(tmp_path):
    codec = trained("plain")
    codec.save_pretrained(tmp_path / "shared")
    codec.save(tmp_path / "codec.safetensors")
    content = (tmp_path / "shared/model.safetensors").read_bytes()
    assert content == (tmp_path / "codec.safetensors").read_bytes()
    config = json.loads((tmp_path / "shared/config.json").read_text())
    assert config["model"] == codec.config.to_dict() and config["encode"] == codec.encode_options.to_dict()
    assert config["trained"] == {"num_vectors": 1500, "valid_mse": codec.provenance["valid_mse"]}


def test_what_is_there_is_replaced_only_if_asked(saved, tmp_path):
    folder = saved.save_pretrained(tmp_path / "shared")
    (folder / "README.md").write_text("mine")
    with pytest.raises(ConfigError, match="overwrite=true"):
        saved.save_pretrained(folder)
    assert (folder / "README.md").read_text() == "mine"
    saved.save_pretrained(folder, readme=False, overwrite=True)
    assert (folder / "README.md").read_text() == "mine"
    saved.save_pretrained(folder, readme="# Ours\n", overwrite=True)
    assert (folder / "README.md").read_text() == "# Ours\n"
    assert len(names_in(folder)) == 3 and answers(type(saved).from_pretrained(folder)) == answers(saved)


def test_saving_leaves_an_index_that_of_its_own_folder(tmp_path):
    index = copied(built())
    index.save(tmp_path / "index")
    index.save_pretrained(tmp_path / "shared")
    qinco.Index.load(tmp_path / "index").save(tmp_path / "index")
    assert not index.is_current and index.reload()


def test_a_collection_is_read_where_it_lies_or_copied_to_be_written(docs, tmp_path):
    docs.save_pretrained(tmp_path / "shared")
    with qinco.Collection.from_pretrained(tmp_path / "shared") as there:
        with pytest.raises(ConfigError):
            there.delete([1])
        assert there.verify() == []
    with qinco.Collection.from_pretrained(tmp_path / "shared", tmp_path / "copy.qinco") as copy:
        copy.delete([1])
        assert (len(copy), len(docs), copy.folder) == (100, 101, tmp_path / "copy.qinco")
    docs.upsert(["more"], vectors(1, 8))
    docs.save_pretrained(tmp_path / "shared", overwrite=True)
    with qinco.Collection.from_pretrained(tmp_path / "shared") as there:
        assert "more" in there


def test_the_card_of_named_vectors_has_a_row_and_figures_for_each_name(named, tmp_path):
    found = named.evaluate(vectors(100), using="image", k=5)
    named.save_pretrained(tmp_path / "shared", measured={"vectors": {"image": found}})
    text = (tmp_path / "shared/README.md").read_text()
    assert "| te\\|xt | 99 | 4 | 16 | cosine |" in text and "101 records" in text and "recall_at_5" in text
    with qinco.NamedCollection.from_pretrained(tmp_path / "shared", tmp_path / "copy.qinco") as copy:
        copy.delete([1])
        assert (len(copy), len(named)) == (100, 101) and copy.verify() == []


def test_files_that_are_links_are_copied_whole(docs, tmp_path):
    """As the hub's cache has them."""
    docs.save_pretrained(tmp_path / "shared")
    for number, path in enumerate([one for one in (tmp_path / "shared").rglob("*") if one.is_file()]):
        blob = tmp_path / f"blob-{number}"
        path.rename(blob)
        path.symlink_to(os.path.relpath(blob, path.parent))
    with qinco.Collection.from_pretrained(tmp_path / "shared") as there:
        assert answers(there) == answers(docs)
    with qinco.Collection.from_pretrained(tmp_path / "shared", tmp_path / "copy.qinco") as copy:
        assert not [path for path in copy.folder.rglob("*") if path.is_symlink()]
        assert copy.verify() == [] and answers(copy) == answers(docs)


def test_another_kind_is_told_where_to_load_it(docs, named, tmp_path):
    folders = {"codec": trained("plain").save_pretrained(tmp_path / "codec"),
               "index": built().save_pretrained(tmp_path / "index"),
               "collection": docs.save_pretrained(tmp_path / "collection"),
               "named_collection": named.save_pretrained(tmp_path / "named")}  # fmt: skip
    for kind, folder in folders.items():
        for other, wanted in KINDS.items():
            if other != kind:
                with pytest.raises(DataError, match=f" {KINDS[kind].__name__}.from_pretrained"):
                    wanted.from_pretrained(folder)


def test_folders_that_are_none_of_ours_are_refused(tmp_path):
    (tmp_path / "shared").mkdir()
    for name in ("nothing", "~nobody/x", tmp_path / "missing", "a/b/c"):
        with pytest.raises(DataError, match="neither a folder nor the name of a repository"):
            qinco.Codec.from_pretrained(name)
    with pytest.raises(DataError, match=r"holds no model\.safetensors"):
        qinco.Codec.from_pretrained(tmp_path / "shared")
    for text, told in (("{", "damaged"), ("[]", "damaged"), ('{"kind": "codec", "format_version": 9}', "update qinco")):
        (tmp_path / "shared/config.json").write_text(text)
        with pytest.raises(DataError, match=told):
            qinco.Codec.from_pretrained(tmp_path / "shared")
    (tmp_path / "shared/config.json").write_text('{"architectures": ["BertModel"]}')
    (tmp_path / "shared/model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    with pytest.raises(DataError, match="did not write"):
        qinco.Codec.from_pretrained(tmp_path / "shared")
    for bad in (7, None):
        with pytest.raises(ConfigError):
            qinco.Codec.from_pretrained(bad)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"readme": 3}, "readme"),
        ({"metadata": "mit"}, "metadata"),
        ({"metadata": {"license": {1, 2}}}, "JSON"),
        ({"measured": [1]}, "measured"),
    ],
)
def test_a_mistake_leaves_nothing(settings, told, tmp_path):
    with pytest.raises(ConfigError, match=told):
        trained("plain").save_pretrained(tmp_path / "shared", **settings)
    assert not (tmp_path / "shared").exists()


def test_without_the_hubs_library_folders_work_and_repositories_say_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    folder = trained("plain").save_pretrained(tmp_path / "shared")
    np.testing.assert_array_equal(answers(qinco.Codec.from_pretrained(folder)), answers(trained("plain")))
    for call in (qinco.Codec.from_pretrained, trained("plain").push_to_hub):
        with pytest.raises(ConfigError, match=r"pip install 'qinco\[hub\]'"):
            call("owner/name")


def test_uploads_are_what_was_asked_for(saved):
    hub = pytest.importorskip("huggingface_hub", reason="needs the extra hub")
    uploaded = {}

    def upload(*, folder_path, **settings):
        readme = Path(folder_path, "README.md")
        uploaded.update(settings, files=names_in(folder_path), readme=readme.read_text() if readme.exists() else None)
        return mock.Mock(commit_url="https://hub/commit", pr_url="https://hub/pr")

    with mock.patch.object(hub, "HfApi", autospec=True) as Api:
        api = Api.return_value
        api.upload_folder.side_effect = upload
        assert saved.push_to_hub("owner/name", private=True, token="secret") == "https://hub/commit"
        assert Api.call_args.kwargs["token"] == "secret"
        api.create_repo.assert_called_once_with("owner/name", private=True, exist_ok=True)
        api.create_branch.assert_not_called()
        assert (
            uploaded["repo_id"] == "owner/name"
            and f'{type(saved).__name__}.from_pretrained("owner/name"' in (uploaded["readme"])
        )
        assert "config.json" in uploaded["files"] and "secret" not in str(uploaded)
        settings = {"revision": "v2", "commit_message": "Second", "readme": False}
        saved.push_to_hub("owner/name", **settings)
        api.create_branch.assert_called_once_with("owner/name", branch="v2", exist_ok=True)
        assert (uploaded["revision"], uploaded["commit_message"], uploaded["readme"]) == ("v2", "Second", None)
        assert saved.push_to_hub("owner/name", create_pr=True) == "https://hub/pr" and uploaded["create_pr"] is True
        api.create_repo.side_effect = OSError("401 Client Error: wrong token\nmore")
        with pytest.raises(DataError, match=r"cannot upload to owner/name \(401 Client Error: wrong token\): see"):
            saved.push_to_hub("owner/name")
