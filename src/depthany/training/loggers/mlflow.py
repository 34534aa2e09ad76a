"""MLflow, in a database of the run directory unless MLFLOW_TRACKING_URI says otherwise."""

import logging
import os
import re
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import yaml

from depthany.system.packages import optional
from depthany.training.loggers.logger import Logger, LogPlace

RUN_FILE, DATABASE, ARTIFACTS = "mlflow_run.txt", "mlflow.db", "mlartifacts"
_LONGEST, _PER_BATCH = 6000, 100  # characters of a parameter, parameters of a call: limits of MLflow


class MlflowLogger(Logger):
    """Logs to a run of MLflow, which a resumed run continues: its id is kept in mlflow_run.txt.

    Its own environment variables count: MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME (depthany by default) and
    others. What is logged again after a resume lies on the same points: MLflow keeps both.
    """

    title, written = "MLflow", (RUN_FILE, f"{DATABASE}*", ARTIFACTS)

    def __init__(self, place: LogPlace) -> None:
        super().__init__(place)
        self._mlflow = _package()
        folder = place.run_dir.resolve()
        self.uri = os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{folder / DATABASE}")
        try:
            self._client = self._mlflow.MlflowClient(tracking_uri=self.uri)
            self._id = self._begin(yaml.safe_load(place.settings))
            self._client.log_text(self._id, place.settings, "settings.yaml")
        except self._mlflow.MlflowException as error:
            raise ValueError(f"cannot begin a run of MLflow at {self.uri}: {error}") from error

    @classmethod
    def require(cls) -> None:
        """Raises MissingPackage if mlflow-skinny or what its database needs is not installed."""
        _package()
        if "MLFLOW_TRACKING_URI" not in os.environ:
            for name in ("sqlalchemy", "alembic"):
                optional(name, "loggers=[mlflow]", extra="mlflow")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Logs the numbers; characters that MLflow refuses in a name become _."""
        now_ms = int(1000 * time.time())
        metric = self._mlflow.entities.Metric
        metrics = [metric(_name(name), float(value), now_ms, step) for name, value in values.items()]
        self._try(lambda: self._client.log_batch(self._id, metrics=metrics))

    def picture(self, title: str, sheet: np.ndarray, step: int) -> None:
        """Logs a picture, `sheet` [h w 3] uint8 RGB."""
        self._try(lambda: self._client.log_image(self._id, sheet, key=_name(title), step=step))

    def close(self) -> None:
        """Marks the run as finished; a resumed run opens it again."""
        self._try(lambda: self._client.set_terminated(self._id))

    def how_to_look(self) -> str:
        """Returns the command that shows the run."""
        return f"mlflow ui --backend-store-uri {self.uri}"

    def _begin(self, settings: Mapping[str, Any]) -> str:
        """Returns the id of a new run with the settings as parameters, or of the one to continue."""
        if (self.place.run_dir / RUN_FILE).exists():
            run_id = self.place.run_id(RUN_FILE, "")
            self._client.update_run(run_id, "RUNNING")
            return run_id
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "depthany")
        found, folder = self._client.get_experiment_by_name(name), self.place.run_dir.resolve()
        if found is not None:
            experiment = found.experiment_id
        else:
            own = (folder / ARTIFACTS).as_uri() if "MLFLOW_TRACKING_URI" not in os.environ else None
            experiment = self._client.create_experiment(name, artifact_location=own)
        run_id = self._client.create_run(experiment, run_name=folder.name).info.run_id
        params = [
            self._mlflow.entities.Param(_name(key), str(value)[:_LONGEST])
            for key, value in _flat(settings).items()
        ]
        for first in range(0, len(params), _PER_BATCH):
            self._client.log_batch(run_id, params=params[first : first + _PER_BATCH])
        return self.place.run_id(RUN_FILE, run_id)  # last: a run without its parameters is begun again

    def _try(self, write: Callable[[], object]) -> None:
        try:
            write()
        except self._mlflow.MlflowException as error:
            raise OSError(f"MLflow: {error}") from error


def _package() -> Any:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # else it reports its use over the network
    package = optional("mlflow", "loggers=[mlflow]", extra="mlflow")
    for noisy in ("alembic", "mlflow"):  # they list the tables that they create
        logging.getLogger(noisy).setLevel(logging.WARNING)
    return package


def _name(name: str) -> str:
    """Returns the name with the characters that MLflow allows."""
    return re.sub(r"[^\w\-. /]", "_", name, flags=re.ASCII)


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns nested settings by dotted keys."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        found |= (
            _flat(value, f"{prefix}{key}.")
            if isinstance(value, Mapping) and value
            else {f"{prefix}{key}": value}
        )
    return found
