"""Where a run can be logged, by the names in the setting `loggers`. Plug-ins add their own."""

from depthany.training.loggers.jsonl import JsonlLogger
from depthany.training.loggers.logger import Logger
from depthany.training.loggers.mlflow import MlflowLogger
from depthany.training.loggers.tensorboard import TensorBoardLogger
from depthany.training.loggers.wandb import WandbLogger

LOGGERS: dict[str, type[Logger]] = {
    "jsonl": JsonlLogger,
    "tensorboard": TensorBoardLogger,
    "wandb": WandbLogger,
    "mlflow": MlflowLogger,
}
