"""`Collection.retrain`: another codec for all vectors, which are encoded from their originals.

Nothing changes before the last transaction, which lists one new segment instead of all others.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from qinco.collection import segments, stages
from qinco.collection.finding import keys_by_id
from qinco.collection.moments import Moment, View
from qinco.collection.optimize import Optimizer
from qinco.collection.records import Id
from qinco.collection.schema import value_of
from qinco.errors import DataError
from qinco.search.build import metric_of_codec, prepared
from qinco.vectors.rows import VectorSource


class Retrainer(Optimizer):
    """One call of `Collection.retrain`."""

    def retrain(self, ids: Sequence[Id], source: VectorSource, settings: dict) -> dict:
        """Train on originals, encode them, and replace all segments; then encode what is fresh."""
        with self.database.optimizing():
            return self._retrained(ids, source, settings)

    def _retrained(self, ids: Sequence[Id], source: VectorSource, settings: dict) -> dict:
        with self.database.reading() as connection:
            view = View(connection, self.moments)
            moment, dim = view.moment, value_of(connection, "dim")
            known = keys_by_id(view, list(ids))
            settings = {"num_steps": value_of(connection, "bytes"), **settings}
        rows = {known[id]: row for row, id in enumerate(ids) if id in known}
        keys_N = np.sort(np.array(list(rows), np.int64))
        stored_N = moment.are_stored(keys_N)
        keys_N = keys_N[stored_N]
        if not moment.num_stored:
            raise DataError("no vectors are compressed: optimize trains the first codec")
        if missing := moment.num_stored - len(keys_N):
            raise DataError(f"{missing:,} of {moment.num_stored:,} compressed vectors are not among those given: give "
                            "the originals of all of them, as codes cannot be encoded anew")  # fmt: skip
        if source.dim != dim:
            raise DataError(f"vectors must have dimension {dim}, that of the collection, not {source.dim}")
        originals = source.take(np.array([rows[key] for key in keys_N.tolist()], np.int64))
        return self._replace(moment, keys_N, originals, settings)

    def _replace(self, moment: Moment, keys_N: np.ndarray, originals: VectorSource, settings: dict) -> dict:
        begun = settings | {stages.RETRAINED: len(keys_N)}
        if not stages.is_begun(self.folder, begun):
            stages.begin(self.folder, prepared(originals, moment.metric), begun, self.report)
        codec, error = stages.train(self.folder, settings, self.report)
        codec = codec.to(self.moments.device)
        purpose = f"retrain{moment.segments[-1].number}"  # codes of keys, whose vectors may be others in newer segments
        pieces, metric = stages.EncodedPieces(self.folder, codec, purpose), metric_of_codec(moment.metric.name, codec)

        def read(some_n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            x_nD = originals[np.searchsorted(keys_N, some_n)]
            return some_n, metric.prepare(x_nD) if metric.name == "cosine" else x_nD

        pieces.encode(keys_N, read, self.report)
        codec.save(segments.codec_path(self.folder, codec.fingerprint()))
        codes = pieces.codes(keys_N)
        done = self._written(codec, replace(moment, tables=None), metric, originals, keys_N, codes)
        meta = {"codec": codec.fingerprint(), "bytes": codec.num_codes, "first_error": error or done[0].error}
        self._commit(moment, *done, meta=meta)
        stages.forget_training(self.folder)
        return {"trained": True, "encoded": len(keys_N), "merged_segments": len(moment.segments)}
