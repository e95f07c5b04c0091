"""Whether a run of encoding goes on with the codes that are there: one rule for folders and buckets."""

from dataclasses import dataclass
from typing import Protocol, TypeVar

from qinco.errors import ConfigError
from qinco.store.code_folder import CodePlan


class _Codes(Protocol):
    """Codes in a folder or a bucket."""

    @property
    def plan(self) -> CodePlan: ...

    def missing(self) -> list[int]: ...


_There = TypeVar("_There", bound=_Codes)


@dataclass(frozen=True)
class Share:
    """What a run encodes, and what it may do with codes that are there.

    Attributes:
        plan: of all codes.
        shards: that this run encodes.
        is_alone: these are all shards.
        resume, overwrite: see `qinco.encode_file`.
    """

    plan: CodePlan
    shards: range
    is_alone: bool
    resume: bool
    overwrite: bool

    def joined(self, where, complete: _There | None, pending: _There | None) -> _There | None:
        """The codes that the run goes on with, or None where it begins; ConfigError where others must stay."""
        there, plan = pending or complete, self.plan
        if there is None:
            return None
        missing = set(there.missing())
        if there is pending:
            is_empty = len(missing) == there.plan.num_shards
            is_anew = self.is_alone and (is_empty or (self.overwrite and not self.resume))
        else:
            is_anew = self.overwrite and not (self.resume and there.plan == plan)
        if is_anew:
            return None
        if there is complete and not self.resume and there.plan != plan:
            what = "codes of another codec" if there.plan.codec != plan.codec else "codes of other vectors or options"
            raise ConfigError(f"{where} exists ({what}): give another output, or overwrite=true")
        plan.check_same(where, there.plan)
        if not self.resume and (there is complete or self.is_alone or not missing.issuperset(self.shards)):
            count = plan.num_shards - len(missing)
            remedy = "give resume=true to continue, or overwrite=true in one process to begin anew"
            raise ConfigError(f"{where} holds {count} of {plan.num_shards} shards: {remedy}")
        return there
