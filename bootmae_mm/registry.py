"""Registries of scope ``bootmae_mm``, children of mmengine's.

``type='bootmae_mm.BootMAE'`` works in any default scope without ``custom_imports``: mmengine imports this module for
the prefix, and the registries import their components on first use.
"""

from mmengine.registry import DATA_SAMPLERS as MMENGINE_DATA_SAMPLERS
from mmengine.registry import DATASETS as MMENGINE_DATASETS
from mmengine.registry import FUNCTIONS as MMENGINE_FUNCTIONS
from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import LOOPS as MMENGINE_LOOPS
from mmengine.registry import METRICS as MMENGINE_METRICS
from mmengine.registry import MODEL_WRAPPERS as MMENGINE_MODEL_WRAPPERS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS as MMENGINE_OPTIM_WRAPPER_CONSTRUCTORS
from mmengine.registry import OPTIM_WRAPPERS as MMENGINE_OPTIM_WRAPPERS
from mmengine.registry import TRANSFORMS as MMENGINE_TRANSFORMS
from mmengine.registry import VISBACKENDS as MMENGINE_VISBACKENDS
from mmengine.registry import Registry

MODELS = Registry('model', parent=MMENGINE_MODELS, scope='bootmae_mm', locations=['bootmae_mm.models'])
MODEL_WRAPPERS = Registry(
    'model_wrapper', parent=MMENGINE_MODEL_WRAPPERS, scope='bootmae_mm', locations=['bootmae_mm.engine']
)
DATASETS = Registry('dataset', parent=MMENGINE_DATASETS, scope='bootmae_mm', locations=['bootmae_mm.data'])
TRANSFORMS = Registry('transform', parent=MMENGINE_TRANSFORMS, scope='bootmae_mm', locations=['bootmae_mm.data'])
FUNCTIONS = Registry('function', parent=MMENGINE_FUNCTIONS, scope='bootmae_mm', locations=['bootmae_mm.data'])
DATA_SAMPLERS = Registry(
    'data sampler', parent=MMENGINE_DATA_SAMPLERS, scope='bootmae_mm', locations=['bootmae_mm.data']
)
HOOKS = Registry('hook', parent=MMENGINE_HOOKS, scope='bootmae_mm', locations=['bootmae_mm.engine'])
LOOPS = Registry('loop', parent=MMENGINE_LOOPS, scope='bootmae_mm', locations=['bootmae_mm.engine'])
OPTIM_WRAPPERS = Registry(
    'optimizer wrapper', parent=MMENGINE_OPTIM_WRAPPERS, scope='bootmae_mm', locations=['bootmae_mm.engine']
)
OPTIM_WRAPPER_CONSTRUCTORS = Registry(
    'optimizer wrapper constructor',
    parent=MMENGINE_OPTIM_WRAPPER_CONSTRUCTORS,
    scope='bootmae_mm',
    locations=['bootmae_mm.engine'],
)
VISBACKENDS = Registry(
    'vis_backend', parent=MMENGINE_VISBACKENDS, scope='bootmae_mm', locations=['bootmae_mm.visualization.backends']
)
METRICS = Registry('metric', parent=MMENGINE_METRICS, scope='bootmae_mm', locations=['bootmae_mm.evaluation'])
