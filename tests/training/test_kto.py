"""KTO on a model: the baseline of a step by hand, whatever its micro-batches; labels of rows and of pairs; a whole run."""

from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from safetensors.numpy import load_file

import mlxmath
from mlxmath.config.losses import DpoConfig
from mlxmath.config.schema import LoraConfig, TrainingConfig
from mlxmath.data.batch import Shape
from mlxmath.data.completions import Completions, CompletionSampler, CompletionStep
from mlxmath.errors import InputError
from mlxmath.models.kernels.cpu import CpuKernels
from mlxmath.models.lora.inject import inject
from mlxmath.training.accumulate import Workers, accumulate, replica
from mlxmath.training.checkpoint import Position, Saver
from mlxmath.training.dpo import ReferenceLogprobs, WithReference, frozen
from mlxmath.training.gradients import choose_gradients
from mlxmath.training.kto import METRICS, Baseline, kto_loss
from mlxmath.training.pairs import completion_logprobs
from tests.conftest import FakeRows, make_tiny_llama
from tests.training.test_neftune import adapters_of

NUM, PROMPT = 7, 4
CONFIG = DpoConfig(loss_type="kto", beta=0.3, desirable_weight=1.4)
IS_DESIRABLE = np.array([True, False, True, True, False, True, False])
QUESTIONS = np.array([5, 5, 6, 7, 7, 8, 9], np.uint64)
