"""A run told to an MLflow server or store, beside TensorBoard: parameters, metrics by epoch, files, lineage.

What a run has told stands in its ``mlflow.json``, without the address: nothing goes anywhere unless an address is
given, also when it is resumed. A server that is away while a run trains does not end it: what it missed is told later.
"""

from __future__ import annotations

import functools
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ParamSpec, TypeVar
from urllib.parse import urlsplit

from segpipe.bundle import MANIFEST
from segpipe.common.console import Console, quiet_libraries, quoted
from segpipe.common.files import read_json, sha256_of, write_json
from segpipe.errors import DataError, UsageError
from segpipe.reporting import learning_curves

ADDRESS = "SEGPIPE_MLFLOW"  # which the processes of a training inherit
TOLD = "mlflow.json"
SCHEMA_VERSION = 1
WITHOUT_PLACES = {"bundle_root": ".", "run_dir": "@bundle_root", "dataset_dir": "data", "store": None}
PARAMETERS = (
    *("network_name", "loss_name", "task_name", "fold", "seed", "max_epochs", "batch_size", "steps_per_epoch"),
    *("learning_rate", "patch_size", "precision", "threads", "num_workers", "averaging", "warmup_epochs"),
    *("keep_weights", "early_stop_patience", "overlap", "network_def", "loss"),
)
ENDED = {"finished": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}
SCHEMES = ("http", "https", "sqlite")
# no word to anybody but the server, and no minutes of waiting for it
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "GIT_PYTHON_REFRESH": "quiet",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
AT_ONCE = 500  # metrics in one call; MLflow takes 1,000
Row = Mapping[str, Any]  # of history.csv: numbers, or their text
P = ParamSpec("P")
R = TypeVar("R")


@contextmanager
def tracked(address: str | None) -> Iterator[None]:
    """Let the trainings within tell an address, in this process and those that it starts; None changes nothing.

    Raises:
        UsageError: it is no address, MLflow is not installed, or nothing answers there.
    """
    if address is None:
        yield
        return
    _client(address)
    before = os.environ.get(ADDRESS)
    os.environ[ADDRESS] = address
    try:
        yield
    finally:
        if before is None:
            del os.environ[ADDRESS]
        else:
            os.environ[ADDRESS] = before


def told(function: Callable[P, R]) -> Callable[P, R]:
    """Let a function tell the address of its keyword ``mlflow``, as `tracked` does."""

    @functools.wraps(function)
    def call(*arguments: P.args, **keywords: P.kwargs) -> R:
        address = keywords.get("mlflow")
        with tracked(None if address is None else str(address)):
            return function(*arguments, **keywords)

    return call


def tracker_of(out: Path, say: Callable[[str], object] | None = None) -> Tracker | None:
    """Return what tells the run of a folder, or None where no address was given.

    Args:
        out: run folder, with its record.
        say: called with a line where the server is away; None writes it to standard error.

    Raises:
        UsageError: nothing answers there.
    """
    address = os.environ.get(ADDRESS)
    return Tracker(out, address, say or Console("train").note) if address else None


def track_bundle(bundle: Path, run: Path, address: str) -> str:
    """Keep a bundle with the run that it was made of, or with one of its own where there are several or none.

    Args:
        bundle: its folder.
        run: the run folder that it was exported from.
        address: of the server or store.

    Returns:
        The id of MLflow's run.

    Raises:
        UsageError: nothing answers there.
    """
    client = _client(address)
    with _answering(address):
        told = _told(run)
        run_id = told.get("run_id") if told else None
        if run_id is None or not _knows(client, run_id):
            name = read_json(bundle / "configs/metadata.json", "metadata")["name"]
            run_id = client.create_run(_experiment(client, address, name), run_name=bundle.name).info.run_id
            client.set_terminated(run_id)
        for name, value in (("manifest_sha256", bundle / MANIFEST), ("bundle_sha256sums", bundle / "SHA256SUMS")):
            if value.is_file():
                client.set_tag(run_id, f"segpipe.{name}", sha256_of(value))
        client.log_artifacts(run_id, str(bundle), "bundle")
    return str(run_id)


class Tracker:
    """Tells one run.

    Args:
        out: run folder, with its record.
        address: of a server (``http://``, ``https://``) or a local store (``sqlite:///FILE``).
        say: called with a line where the server is away.

    Raises:
        UsageError: nothing answers there.
    """

    def __init__(self, out: Path, address: str, say: Callable[[str], object]) -> None:
        self.out, self._address, self._say = out, address, say
        self._client = _client(address)
        self._silent = False
        with _answering(address):
            told = _told(out)
            if told is None or not _knows(self._client, told["run_id"]):
                told = {"schema_version": SCHEMA_VERSION, "run_id": self._begin(), "epochs": 0}
                write_json(out / TOLD, told)
            self._told = told
            self._client.update_run(told["run_id"], status="RUNNING")

    @property
    def run_id(self) -> str:
        """Return the id of MLflow's run."""
        return str(self._told["run_id"])

    def rows(self, history: Sequence[Row]) -> None:
        """Tell the epochs of a history that were not told yet; where nothing answers, another time."""
        from mlflow.entities import Metric

        new = [row for row in history if int(row["epoch"] or 0) > self._told["epochs"]]
        metrics = [
            Metric(name, float(value), 0, int(row["epoch"] or 0))
            for row in new
            for name, value in row.items()
            if name != "epoch" and value not in (None, "")
        ]
        if not metrics:
            return
        try:
            for start in range(0, len(metrics), AT_ONCE):
                self._client.log_batch(self.run_id, metrics=metrics[start : start + AT_ONCE])
        except Exception as error:  # noqa: BLE001 - a training does not end for it
            self._away(error)
            return
        self._silent = False
        self._told["epochs"] = int(new[-1]["epoch"] or 0)
        write_json(self.out / TOLD, self._told)

    def end(self, record: Mapping[str, Any], history: Sequence[Row]) -> None:
        """Tell how a session ended, with the record, the config and the curves."""
        self.rows(history)
        try:
            with tempfile.TemporaryDirectory() as folder:
                place = Path(folder)
                write_json(place / "run.json", record)
                write_json(place / "config.json", _without_places(read_json(self.out / "config.json", "run config")))
                if history:
                    (place / "learning_curves.png").write_bytes(learning_curves({self.out.name: list(history)}))
                self._client.log_artifacts(self.run_id, folder)
            best = record.get("best")
            if best:
                self._client.log_metric(self.run_id, "best_val_mean_dice", best["val_mean_dice"], 0, best["epoch"])
            self._client.set_terminated(self.run_id, ENDED.get(record["status"], "FAILED"))
        except Exception as error:  # noqa: BLE001 - a training does not end for it
            self._away(error)
            self._say(f"tell it again with: segpipe train --resume {quoted(self.out)} --mlflow ADDRESS")

    def _begin(self) -> str:
        from mlflow.entities import Dataset, DatasetInput, Param, RunTag

        record = read_json(self.out / "run.json", "run record")
        config = read_json(self.out / "config.json", "run config")
        parent = self.out.resolve().parent
        several = any((parent / name).is_file() for name in ("cross_validation.json", "seeds.json"))
        name = f"{parent.name}/{self.out.resolve().name}" if several else self.out.resolve().name
        run = self._client.create_run(_experiment(self._client, self._address, record["dataset"]), run_name=name)
        tags = {f"segpipe.{key}": record[key] for key in ("dataset", "manifest_sha256", "config_sha256")}
        versions = record["environment"]["versions"]
        tags |= {f"segpipe.version.{key}": str(value) for key, value in versions.items()}
        parameters = {key: value for key in PARAMETERS if (value := config.get(key)) is not None}
        self._client.log_batch(
            run.info.run_id,
            params=[Param(key, str(value)[:6000]) for key, value in _flat(parameters)],
            tags=[RunTag(key, str(value)) for key, value in tags.items()],
        )
        data = Dataset(record["dataset"], record["manifest_sha256"][:36], "segpipe manifest", "{}")
        self._client.log_inputs(run.info.run_id, [DatasetInput(data)])
        return str(run.info.run_id)

    def _away(self, error: Exception) -> None:
        if not self._silent:
            self._say(f"MLflow does not answer ({type(error).__name__}); the training goes on, and is told later")
        self._silent = True


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield re.sub(r"[^\w./ -]", "_", f"{prefix}{name}"), value


def _without_places(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: WITHOUT_PLACES.get(name, value) for name, value in config.items()}


def _told(out: Path) -> dict[str, Any] | None:
    if not (out / TOLD).is_file():
        return None
    told = read_json(out / TOLD, "what was told to MLflow", "remove it: the run is told as a new one then")
    if (
        not isinstance(told, dict)
        or not {"run_id": str, "epochs": int}.items() <= {name: type(value) for name, value in told.items()}.items()
    ):
        raise DataError(
            "not what `segpipe train --mlflow` writes", path=out / TOLD, hint="remove it: the run is told anew then"
        )
    return told


def _knows(client: Any, run_id: str) -> bool:
    from mlflow.exceptions import MlflowException

    try:
        client.get_run(run_id)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise
    return True


def _experiment(client: Any, address: str, name: str) -> str:
    """Return the id of the experiment of a data set; files of a local store lie beside it."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        place = None
        if address.startswith("sqlite:///"):
            place = (Path(address.removeprefix("sqlite:///")).resolve().parent / "artifacts").as_uri()
        try:
            return str(client.create_experiment(name, artifact_location=place))
        except MlflowException:
            found = client.get_experiment_by_name(name)  # another run was quicker
            if found is None:
                raise
    return str(found.experiment_id)


@contextmanager
def _answering(address: str) -> Iterator[None]:
    """Word what fails while something is told as the place that does not answer."""
    try:
        yield
    except (UsageError, DataError):
        raise
    except Exception as error:
        raise UsageError(
            "MLflow does not answer there",
            found=f"{_shown(address)}: {type(error).__name__}",
            expected="the address of an MLflow server, or sqlite:///FILE",
            hint="start it, or leave --mlflow out: TensorBoard's files are in the run folder anyway",
        ) from error


def _shown(address: str) -> str:
    """Return an address without what is secret in it."""
    return re.sub(r"//[^/@]*@", "//", address)


def _client(address: str) -> Any:
    scheme = urlsplit(address).scheme
    if scheme not in SCHEMES or (scheme == "sqlite" and not address.startswith("sqlite:///")):
        raise UsageError(
            "not an address of MLflow",
            found=_shown(address),
            expected="http://HOST:PORT, https://..., or sqlite:///FILE for a store on this machine",
        )
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    quiet_libraries()
    try:
        from mlflow.tracking import MlflowClient

        if scheme == "sqlite":
            import alembic
            import sqlalchemy  # noqa: F401 - the store's, which mlflow-skinny leaves out

            del alembic
    except ImportError as error:
        what = (
            "tracking needs MLflow"
            if "mlflow" in str(error)
            else "a local store of MLflow needs SQLAlchemy and alembic"
        )
        raise UsageError(
            f"{what}, which is not installed", found=str(error), hint="install it: pip install 'segpipe[mlflow]'"
        ) from error
    with _answering(address):
        client = MlflowClient(tracking_uri=address, registry_uri=address)
        client.search_experiments(max_results=1)
    return client
