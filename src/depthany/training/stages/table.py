"""The stages by name; `stage=<name>` chooses one together with configs/stage/<name>.yaml."""

from depthany.training.stages.base import Stage
from depthany.training.stages.metric import MetricStage
from depthany.training.stages.segmentation import SegmentationStage
from depthany.training.stages.student import StudentStage
from depthany.training.stages.teacher import TeacherStage

STAGES: dict[str, type[Stage]] = {
    "teacher": TeacherStage,
    "student": StudentStage,
    "metric": MetricStage,
    "segmentation": SegmentationStage,
}
