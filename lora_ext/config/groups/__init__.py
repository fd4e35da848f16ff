"""The settings of a run by groups, as people think of them; a module a group."""

from lora_ext.config.groups.captions import CaptionSettings
from lora_ext.config.groups.dataset import DatasetSettings
from lora_ext.config.groups.learning import LearningSettings
from lora_ext.config.groups.loss import LossSettings
from lora_ext.config.groups.memory import MemorySettings
from lora_ext.config.groups.network import NetworkSettings
from lora_ext.config.groups.samples import SampleSettings
from lora_ext.config.groups.saving import SavingSettings

__all__ = [
    "CaptionSettings",
    "DatasetSettings",
    "LearningSettings",
    "LossSettings",
    "MemorySettings",
    "NetworkSettings",
    "SampleSettings",
    "SavingSettings",
]
