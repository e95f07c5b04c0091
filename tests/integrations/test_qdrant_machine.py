"""Collections that change and are read by all calls of qdrant-client, beside `QdrantClient(":memory:")`."""

from collections.abc import Callable

import pytest

pytest.importorskip("uvicorn")
pytest.importorskip("qdrant_client")

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from qdrant_client import QdrantClient
from qdrant_client.http import models as m
from qdrant_client.http.exceptions import UnexpectedResponse
from qdrant_drawn import (
    FEW,
    FEW_IDS,
    POINTS,
    SCHEMES,
    changed,
    config,
    few_ids,
    fields,
    filter_of,
    filters,
    integers,
    keys,
    names,
    new_payloads,
    of_values,
    operation_of,
    paths,
    rows,
    same_points,
    schemes,
    selectors,
    vector_of,
    whole_filters,
)
from serving import serving

BOUNDED = settings(
    max_examples=25,
    stateful_step_count=25,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
INDEXES = {"number": "integer", "rating": "float", "flag": "bool", "color": "keyword", "when": "datetime",
           "of.name": "keyword"}  # fmt: skip
some_filters = st.none() | whole_filters
limits, offsets, seeds = st.integers(1, 12), st.integers(0, 6), st.integers(0, 1 << 30)
few_paths = st.lists(st.sampled_from(["of.name", "parts[].kind", "number", "color", "missing"]), max_size=3)
parts = st.one_of(st.booleans(), few_paths, fields(include=few_paths), fields(exclude=few_paths))
vector_parts = st.booleans() | st.lists(names, max_size=2, unique=True)
examples = few_ids | seeds.map(lambda seed: (seed,))  # ids, and seeds of vectors
requests = fields(
    kind=st.sampled_from(["page", "vector", "point", "recommended"]), row=rows, limit=limits, offset=offsets,
    positive=st.lists(examples, min_size=1, max_size=3), negative=st.lists(examples, max_size=3),
    threshold=st.none() | st.floats(-1, 4), filter=some_filters, part=parts, vectors=vector_parts,
)  # fmt: skip


def part_of(given):
    if isinstance(given, dict):
        kind = m.PayloadSelectorInclude if "include" in given else m.PayloadSelectorExclude
        return kind.model_validate(given)
    return given


class Calls:
    """Methods that are called with what is drawn for their arguments: each as often as another."""

    def __init__(self):
        self.known: list[tuple[Callable, st.SearchStrategy]] = []

    def __call__(self, **arguments):
        def with_arguments(method):
            self.known.append((method, fields(**arguments)))
            return method

        return with_arguments

    def draw(self, machine, data):
        method, arguments = data.draw(st.sampled_from(self.known).flatmap(
            lambda call: st.tuples(st.just(call[0]), call[1])), "call")  # fmt: skip
        method(machine, **arguments)


CHANGES, READS = Calls(), Calls()


class Congruence(RuleBasedStateMachine):
    """The same calls of both clients change and answer the same."""

    clients: tuple[QdrantClient, QdrantClient]

    @initialize(scheme=schemes)
    def begin(self, scheme):
        self.scheme = scheme
        for client in self.clients:
            client.delete_collection("machine")
            client.create_collection("machine", config(scheme))
            client.upsert("machine", FEW[scheme])

    @rule(data=st.data())
    def change(self, data):
        CHANGES.draw(self, data)

    @rule(data=st.data())
    def read(self, data):
        READS.draw(self, data)

    def both(self, call):
        """What a call of each client returns, and None if both refuse it."""
        found, refused = [], []
        for client in self.clients:
            try:
                found.append(call(client))
            except (UnexpectedResponse, ValueError, KeyError) as error:
                refused.append(error)
        assert len(refused) in (0, 2), (found, refused)
        return found or None

    def changes(self, call):
        self.both(call)
        same_points(*(client.scroll("machine", limit=100, with_vectors=True)[0] for client in self.clients))

    def name_of(self, row: int) -> str:
        return sorted(SCHEMES[self.scheme])[row % len(SCHEMES[self.scheme])]

    @CHANGES(given=st.lists(changed, min_size=1, max_size=4))
    def change_by_one_request(self, given):
        operations = [operation_of(self.scheme, *one) for one in given]
        self.changes(lambda client: client.batch_update_points("machine", operations))

    @CHANGES(ids=st.lists(few_ids, min_size=1, max_size=4), row=rows, mode=st.sampled_from([None, *m.UpdateMode]),
          only=st.none() | filters(of_values))  # fmt: skip
    def upsert_columns(self, ids, row, mode, only):
        points = POINTS[self.scheme][row : row + len(ids)]
        name = self.name_of(row)
        vectors = [vector_of(self.scheme, name, row + place) for place in range(len(ids))]
        batch = m.Batch(ids=ids, vectors={name: vectors} if name else vectors,
                        payloads=[point.payload for point in points])  # fmt: skip
        options = {"update_mode": mode, "update_filter": filter_of(only)}
        self.changes(lambda client: client.upsert("machine", batch, **options))

    @CHANGES(chosen=selectors, payload=new_payloads, key=st.none() | paths, is_whole=st.booleans())
    def set_payload(self, chosen, payload, key, is_whole):
        if is_whole:
            self.changes(lambda client: client.overwrite_payload("machine", payload, self.chosen(chosen)))
        else:
            self.changes(lambda client: client.set_payload("machine", payload, self.chosen(chosen), key=key))

    @CHANGES(chosen=selectors, wanted=st.lists(paths, max_size=3))
    def delete_payload(self, chosen, wanted):
        if wanted:
            self.changes(lambda client: client.delete_payload("machine", wanted, self.chosen(chosen)))
        else:
            self.changes(lambda client: client.clear_payload("machine", self.chosen(chosen)))

    @CHANGES(chosen=selectors, wanted=st.lists(names, min_size=1, max_size=2))
    def delete_vectors(self, chosen, wanted):
        self.changes(lambda client: client.delete_vectors("machine", wanted, self.chosen(chosen)))

    @CHANGES(ids=st.lists(few_ids, min_size=1, max_size=3, unique=True), row=rows, only=st.none() | filters(of_values))
    def update_vectors(self, ids, row, only):
        points = [m.PointVectors(id=id, vector=POINTS[self.scheme][row + place].vector)
                  for place, id in enumerate(ids)]  # fmt: skip
        self.changes(lambda client: client.update_vectors("machine", points, update_filter=filter_of(only)))

    @CHANGES(chosen=selectors)
    def delete(self, chosen):
        self.changes(lambda client: client.delete("machine", self.chosen(chosen)))

    def chosen(self, given: dict):
        return given["points"] if "points" in given else filter_of(given["filter"])

    @CHANGES(path=st.sampled_from(list(INDEXES)), is_there=st.booleans())
    def index(self, path, is_there):
        """Indexes of ours change nothing but times."""
        if is_there:
            self.clients[0].create_payload_index("machine", path, INDEXES[path])
        else:
            self.clients[0].delete_payload_index("machine", path)

    @READS(ids=st.lists(few_ids, max_size=6), part=parts, vectors=vector_parts)
    def retrieve(self, ids, part, vectors):
        options = {"with_payload": part_of(part), "with_vectors": vectors}
        found = self.both(lambda client: client.retrieve("machine", ids, **options))
        if found:
            same_points(*(sorted(some, key=lambda one: str(one.id)) for some in found))

    @READS(filter=some_filters, limit=limits, start=st.none() | few_ids, part=parts, vectors=vector_parts)
    def scroll(self, filter, limit, start, part, vectors):
        """Page by page."""
        options = {"with_payload": part_of(part), "with_vectors": vectors, "limit": limit}
        for _ in range(4):
            found = self.both(lambda client: client.scroll("machine", filter_of(filter), offset=start, **options))
            if found is None:
                break
            (ours, following), (theirs, expected) = found
            same_points(ours, theirs)
            assert following == expected
            if (start := following) is None:
                break

    @READS(filter=some_filters, key=keys, is_rising=st.booleans(), limit=limits, start=st.none() | integers,
          is_query=st.booleans())  # fmt: skip
    def order(self, filter, key, is_rising, limit, start, is_query):
        """Points of equal values come in any order."""
        order = m.OrderBy(key=key, direction="asc" if is_rising else "desc", start_from=start)
        if is_query:
            query = m.OrderByQuery(order_by=order)
            found = self.both(lambda client: client.query_points("machine", query, query_filter=filter_of(filter),
                                                                 limit=limit).points)  # fmt: skip
        else:
            found = self.both(lambda client: client.scroll("machine", filter_of(filter), order_by=order,
                                                           limit=limit)[0])  # fmt: skip
        if found:
            ours, theirs = ([(one.order_value, str(one.id)) for one in some] for some in found)
            assert [value for value, _ in ours] == [value for value, _ in theirs]
            last = ours[-1][0] if ours else None
            assert {pair for pair in ours if pair[0] != last} == {pair for pair in theirs if pair[0] != last}

    @READS(filter=some_filters, key=keys, limit=limits)
    def numbers(self, filter, key, limit):
        ours, theirs = (client.count("machine", filter_of(filter)).count for client in self.clients)
        assert ours == theirs
        found = self.both(lambda client: client.facet("machine", key, filter_of(filter), limit).hits)
        if found:
            ours, theirs = ([(hit.value, hit.count) for hit in hits] for hits in found)
            assert ours == theirs

    @READS(given=st.lists(requests, min_size=1, max_size=4))
    def queries(self, given):
        """Several at once."""
        some = [self.request(**one) for one in given]
        found = self.both(lambda client: client.query_batch_points("machine", some))
        if found:
            for ours, theirs in zip(*found, strict=True):
                same_points(ours.points, theirs.points)

    def request(self, kind, row, positive, negative, threshold, filter, part, vectors, **paging) -> m.QueryRequest:
        name = self.name_of(row)

        def vector(seed):
            return vector_of(self.scheme, name, seed)

        near, far = ([vector(one[0]) if isinstance(one, tuple) else one for one in some]
                     for some in (positive, negative))  # fmt: skip
        recommended = m.RecommendInput(positive=near, negative=far)
        query = {"page": None, "vector": vector(row), "point": FEW_IDS[row % len(FEW_IDS)],
                 "recommended": m.RecommendQuery(recommend=recommended)}[kind]  # fmt: skip
        return m.QueryRequest(
            query=query, using=name or None, filter=filter_of(filter), with_payload=part_of(part), with_vector=vectors,
            score_threshold=None if query is None else threshold, **paging,
        )  # fmt: skip

    @READS(row=rows, seed=seeds, filter=some_filters, limit=limits, diversity=st.floats(0, 1))
    def diverse(self, row, seed, filter, limit, diversity):
        name = self.name_of(row)
        query = m.NearestQuery(nearest=vector_of(self.scheme, name, seed),
                               mmr=m.Mmr(diversity=diversity, candidates_limit=limit + 5))  # fmt: skip
        options = {"using": name or None, "limit": limit, "query_filter": filter_of(filter)}
        ours, theirs = (client.query_points("machine", query, **options).points for client in self.clients)
        same_points(ours, theirs)

    @READS(row=rows, seed=seeds, filter=some_filters, limit=limits, size=st.integers(1, 4), lookup=st.booleans(),
          key=st.sampled_from(["group", "of.tags", "number", "parts[].kind", "of.name"]))  # fmt: skip
    def groups(self, row, seed, filter, limit, size, lookup, key):
        name = self.name_of(row)
        options = {"query_filter": filter_of(filter), "limit": limit, "group_size": size, "group_by": key,
                   "using": name or None, "with_lookup": "machine" if lookup else None}  # fmt: skip
        query = vector_of(self.scheme, name, seed)
        ours, theirs = (client.query_points_groups("machine", query=query, **options).groups for client in self.clients)
        assert [group.id for group in ours] == [group.id for group in theirs]
        for one, other in zip(ours, theirs, strict=True):
            same_points(one.hits, other.hits)
            assert (one.lookup is None) == (other.lookup is None)
            if one.lookup is not None:
                same_points([one.lookup], [other.lookup])

    @READS(filter=some_filters, limit=limits, part=parts, vectors=vector_parts)
    def sample(self, filter, limit, part, vectors):
        """Any of the points that the filter admits."""
        options = {"query_filter": filter_of(filter), "with_payload": part_of(part), "with_vectors": vectors}
        query = m.SampleQuery(sample=m.Sample.RANDOM)
        ours, theirs = (client.query_points("machine", query, limit=limit, **options).points for client in self.clients)
        assert len(ours) == len(theirs) == len({one.id for one in ours})
        everyone = self.clients[1].query_points("machine", query, limit=100, **options).points
        known = {one.id: one for one in everyone}
        same_points(ours, [known[one.id] for one in ours])


@pytest.mark.filterwarnings("ignore:Generating overly large repr")
def test_all_calls_change_and_answer_the_same(tmp_path):
    with serving(tmp_path / "data") as server:
        ours, theirs = QdrantClient(url=server.url, timeout=60), QdrantClient(":memory:")
        try:
            machine = type("Served", (Congruence,), {"clients": (ours, theirs)})
            run_state_machine_as_test(machine, settings=BOUNDED)
        finally:
            ours.close()
            theirs.close()
