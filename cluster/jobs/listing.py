"""The jobs of a dataset, by their records: what runs, what ended, and what was lost."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from dray.cluster.jobs.record import LOST_AFTER_S, JobPlace, JobRecord, JobState
from dray.pipelines.progress import say
from dray.shards.errors import DamagedError, NotFoundError
from dray.shards.layout import DRAY_FOLDER, Layout, Location
from dray.shards.storage.store import Store

MOST_LISTED = 50  # the newest ones; each costs a read


@dataclass(frozen=True, slots=True)
class Job:
    """A job with a record.

    Attributes:
        url: Folder of the record's dataset.
        prefix: Prefix of that dataset.
        record: Its record; a job that is lost has that state.
    """

    url: str
    prefix: str
    record: JobRecord

    def facts(self) -> dict[str, Any]:
        """Returns what --json prints."""
        derived = {"per_s": round(self.record.rate, 3), "remaining_s": self.record.remaining_s}
        return {"url": self.url, "prefix": self.prefix, **asdict(self.record), **derived}


def jobs_in(store: Store) -> list[Job]:
    """Returns the newest jobs of the datasets in a folder, newest first."""
    layouts = [Layout(name.removeprefix(f"{DRAY_FOLDER}/")) for name in store.list_folders(DRAY_FOLDER)]
    found = [(info, layout) for layout in layouts for info in store.list_folder(layout.jobs)]
    named = [one for one in found if one[0].name.endswith(".json")]
    named.sort(key=lambda one: one[0].modified, reverse=True)
    return [
        job
        for info, layout in named[:MOST_LISTED]
        for job in _read(Location(store, layout), info.name.rpartition("/")[2].removesuffix(".json"), info.modified)
    ]


def find_job(store: Store, job_id: str) -> Job:
    """Returns the job with this id.

    Raises:
        NotFoundError: No dataset in the folder has its record.
    """
    for name in store.list_folders(DRAY_FOLDER):
        place = JobPlace(Location(store, Layout(name.removeprefix(f"{DRAY_FOLDER}/"))), job_id)
        info = store.head(place.name)
        if info is not None:
            return Job(store.url, place.location.prefix, _judged(place.read(), info.modified))
    raise NotFoundError(f"no record of a job {job_id!r} in {store.url}: dray jobs {store.url} lists those there")


def _read(location: Location, job_id: str, modified: datetime) -> Iterator[Job]:
    try:
        yield Job(location.url, location.prefix, _judged(JobPlace(location, job_id).read(), modified))
    except NotFoundError:  # a gc deleted it meanwhile
        return
    except (DamagedError, ValueError) as exc:
        say(f"left out: {exc}")


def _judged(record: JobRecord, modified: datetime) -> JobRecord:
    """Returns the record, as that of a lost job if it should have been written since, by the store's clock."""
    is_silent = datetime.now(UTC) - modified > timedelta(seconds=LOST_AFTER_S)
    return replace(record, state=JobState.LOST) if record.state == JobState.RUNNING and is_silent else record
